"""What a reader finds in a report: text, tables and pictures, by the part that they are in."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "img", "br", "input"}


class Page(HTMLParser):
    """A report whose tags close.

    Attributes:
        texts: text of each element, by its tag.
        attributes: tag, name and value of every attribute.
        cells: rows of cells, by the heading's id of the part; a part has one table.
        figures: captions and lists of words, by the same id.
        items: entries of lists, by the same id.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: dict[str, list[str]] = {}
        self.attributes: list[tuple[str, str, str]] = []
        self.cells: dict[str, list[list[str]]] = {}
        self.figures: dict[str, list[str]] = {}
        self.items: dict[str, list[str]] = {}
        self._open: list[tuple[str, list[str]]] = []
        self._part = ""
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "h2":
            self._part = dict(attrs).get("id") or ""
        if tag == "tr":
            self.cells.setdefault(self._part, []).append([])
        if tag not in VOID:
            self._open.append((tag, []))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        last, words = self._open.pop()
        assert last == tag
        text = " ".join("".join(words).split())
        self.texts.setdefault(tag, []).append(text)
        if tag in ("td", "th"):
            self.cells[self._part][-1].append(text)
        for name, found in (("figcaption", self.figures), ("li", self.items)):
            if tag == name:
                found.setdefault(self._part, []).append(text)

    def handle_data(self, data: str) -> None:
        for _, words in self._open:
            words.append(data)

    def values(self, name: str, tag: str = "") -> list[str]:
        """Values of an attribute, of one tag or of all."""
        return [v for t, n, v in self.attributes if n == name and tag in ("", t)]
