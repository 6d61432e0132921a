"""The server: its endpoint, and what it refuses."""

from __future__ import annotations

import io
import json
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from small_images import picture

from fewshot_blo.commands import main as cli
from fewshot_blo.errors import ConfigurationError
from fewshot_blo.finetune import (
    Classifier,
    LabelledImages,
    load_classifier,
    read_labelled,
    save_classifier,
)
from fewshot_blo.finetune.candidates import BALANCED, Candidate

pytest.importorskip("starlette", reason="the extra serve is not installed")

from starlette.testclient import TestClient

from fewshot_blo.finetune.serving import uploads
from fewshot_blo.finetune.serving.answers import Picture
from fewshot_blo.finetune.serving.app import application
from fewshot_blo.finetune.serving.run import serve
from fewshot_blo.finetune.serving.versions import Versions

Fit = Callable[[Candidate, LabelledImages, float], Classifier]
HOST = "http://127.0.0.1:8000"
ODD = "<script>alert(1)</script>"


def png(colour: int, number: int) -> bytes:
    stream = io.BytesIO()
    picture(colour, number).save(stream, "PNG")
    return stream.getvalue()


def files(*pairs: tuple[str, bytes]) -> list[Any]:
    return [("files", pair) for pair in pairs]


@pytest.fixture
def versions(make_folder: Callable[..., Path], fit_one: Fit, tmp_path: Path) -> Versions:
    classifier = fit_one(BALANCED, read_labelled(make_folder(5, 4, 5), 16), 0.2)
    save_classifier(classifier, tmp_path / "c.pt")
    return Versions(classifier, tmp_path / "c.pt")


@pytest.fixture
def client(versions: Versions) -> Iterator[TestClient]:
    with TestClient(application(versions), base_url=HOST, raise_server_exceptions=False) as made:
        yield made


def test_labels_are_those_of_predict(
    client: TestClient, small_networks: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, sent = tmp_path / "new", []
    folder.mkdir()
    for colour in range(3):
        picture(colour, 50).rotate(30, expand=True).save(folder / f"{colour}.png")
    picture(0, 51).convert("L").save(folder / "grey.jpg")
    picture(0, 52).convert("RGBA").save(folder / "clear.webp")
    sent = [(path.name, path.read_bytes()) for path in sorted(folder.iterdir())]
    output = tmp_path / "labels.json"
    words = ["predict", str(tmp_path / "c.pt"), str(folder), f"--own={small_networks}"]
    assert cli.main([*words, f"--output={output}"]) == 0
    expected = json.loads(output.read_text(encoding="utf-8"))
    found = client.post("/predict", files=files(*sent)).json()
    assert [Path(row["file"]).name for row in expected] == [row["file"] for row in found]
    for row, same in zip(found, expected, strict=True):
        assert row["label"] == same["label"]
        assert row["error"] is None
        for name in ("probability", "likeness", "probabilities"):
            assert row[name] == pytest.approx(same[name], abs=1e-6)
        similarities = [near["similarity"] for near in row["nearest"]]
        assert similarities == sorted(similarities, reverse=True)
        thumbnail = client.get(row["nearest"][0]["picture"])
        assert thumbnail.headers["content-type"] == "image/jpeg"
        with Image.open(io.BytesIO(thumbnail.content)) as image:
            assert image.size == (16, 16)


def test_files_that_are_no_images_are_named(client: TestClient) -> None:
    jpeg = io.BytesIO()
    picture(0, 1).resize((200, 200)).save(jpeg, "JPEG")
    bomb = io.BytesIO()
    Image.new("1", (20000, 20000)).save(bomb, "PNG")
    sent = [
        ("note.png", b"text"),
        ("cut.jpg", jpeg.getvalue()[:2000]),
        ("nothing.png", b""),
        ("bomb.png", bomb.getvalue()),
        ("../../etc/passwd", b"root"),
        ("C:\\pictures\\good.png", png(0, 60)),
        (f"{ODD}.png", b"x"),
        ("名前.png", png(1, 60)),
    ]
    response = client.post("/predict", files=files(*sent))
    assert response.status_code == 200
    found = response.json()
    errors = [row["error"] for row in found]
    for row, words in enumerate(("note.png cannot", "cut.jpg cannot", "nothing.png cannot")):
        assert words in errors[row]
        assert found[row]["label"] is None
    assert "bomb.png is too large" in errors[3]
    assert found[4]["file"] == "passwd"
    assert found[5] == {**found[5], "file": "good.png", "error": None}
    assert found[7]["file"] == "名前.png"
    assert client.post("/classes", files=files(*sent[:2]), data={"name": "x"}).status_code == 400


def test_limits(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    hundred = files(*((f"{n}.png", png(n % 3, n)) for n in range(100)))
    assert len(client.post("/predict", files=hundred).json()) == 100
    response = client.post("/predict", files=[*hundred, *files(("x.png", png(0, 0)))])
    assert response.status_code == 400
    assert "send at most 100 pictures" in response.json()["error"]

    def large() -> Iterator[bytes]:
        head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="x.png"\r\n\r\n'
        yield head
        for _ in range(200):
            yield bytes(2**20)

    headers = {"content-type": "multipart/form-data; boundary=b"}
    monkeypatch.setattr(uploads, "BODY_MIB", 3)
    response = client.post("/predict", content=large(), headers=headers)
    assert response.status_code == 413
    assert "more than 3 MiB together" in response.json()["error"]
    response = client.post("/predict", headers={**headers, "content-length": str(200 * 2**20)})
    assert response.status_code == 413
    monkeypatch.setattr(uploads, "FILE_MIB", 1)
    response = client.post("/predict", files=files(("big.png", bytes(2**21))))
    assert (response.status_code, response.json()["error"]) == (
        413,
        "big.png has 2 MiB: send at most 1 MiB",
    )


def test_requests_that_are_no_forms(client: TestClient) -> None:
    assert client.post("/predict", json={}).status_code == 415
    headers = {"content-type": "multipart/form-data; boundary=b"}
    assert client.post("/predict", content=b"nonsense", headers=headers).status_code == 400
    assert client.post("/predict", data={"a": "b"}, files={}).status_code == 415
    for path in ("/nowhere", "/static/../app.py", "/training/1/999.jpg", "/training/9/0.jpg"):
        response = client.get(path)
        assert response.status_code == 404
        assert response.json()["error"]
    assert client.get("/predict").status_code == 405


def test_a_class_and_a_corrected_label_become_versions(
    client: TestClient, versions: Versions, small_networks: str, tmp_path: Path
) -> None:
    before = client.get("/classes").json()
    assert [row["name"] for row in before["classes"]] == list(versions.now.classifier.class_names)
    assert (before["file"], before["can_undo"], before["pictures"]) == ("c.pt", False, True)
    old = (tmp_path / "c.pt").read_bytes()
    for start, name in ((60, ODD), (80, "日本")):
        sent = files(*((f"{n}.png", png(1, n)) for n in range(start, start + 3)))
        added = client.post("/classes", files=sent, data={"name": f" {name} "})
        assert added.status_code == 200
        assert added.json()["classes"][-1] == {"name": name, "images": 3}
        assert added.json()["learned"].startswith(f"class '{name}' learned from 3 images")
    assert added.json()["file"] == "c-3.pt"
    right = client.post("/images", files=files(("a.png", png(0, 70))), data={"name": "red"})
    assert right.json()["file"] == "c-4.pt"
    row = client.post("/predict", files=files(("a.png", png(0, 70)))).json()[0]
    assert max(row["probabilities"], key=row["probabilities"].get) == "red"
    assert row["nearest"][0]["file"] == "a.png"
    again = client.post("/images", files=files(("a.png", png(0, 70))), data={"name": "red"}).json()
    assert again["file"] == "c-4.pt"
    assert again["notes"] == ["1 image passed over: it is in 'red' already"]

    downloaded = client.get("/classifier.pt")
    assert 'filename="c-4.pt"' in downloaded.headers["content-disposition"]
    assert downloaded.headers["content-type"] == "application/octet-stream"
    (tmp_path / "down.pt").write_bytes(downloaded.content)
    loaded = load_classifier(tmp_path / "down.pt", own=small_networks)
    assert loaded.class_names == versions.now.classifier.class_names
    assert client.post("/undo").json()["file"] == "c-3.pt"
    assert client.post("/undo").json()["file"] == "c-2.pt"
    assert client.post("/undo").json()["classes"] == before["classes"]
    response = client.post("/undo")
    assert (response.status_code, "no version before" in response.text) == (400, True)
    assert (tmp_path / "c.pt").read_bytes() == old
    (tmp_path / "c.pt").unlink()
    assert client.get("/classifier.pt").status_code == 404


@pytest.mark.parametrize(
    ("path", "name", "match"),
    [
        ("/classes", "", "has no name"),
        ("/classes", "red", "exists already"),
        ("/classes", "none of these", "says that an image is of no class"),
        ("/classes", "x" * 101, "has 101 characters"),
        ("/classes", "a\nb", "in one line"),
        ("/images", "nothing", "there is no class 'nothing'"),
    ],
)
def test_names_that_do_not_do(client: TestClient, path: str, name: str, match: str) -> None:
    response = client.post(path, files=files(("a.png", png(0, 70))), data={"name": name})
    assert response.status_code == 400
    assert match in response.json()["error"]
    assert client.get("/classes").json()["file"] == "c.pt"


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "[", "10.0.0.5"])
def test_other_hosts_are_refused(client: TestClient, host: str) -> None:
    response = client.get("/classes", headers={"host": host})
    assert response.status_code == 403
    assert "is not served here" in response.json()["error"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:9999"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"origin": HOST, "sec-fetch-site": "same-origin"}, 400),
        ({}, 400),
    ],
)
def test_other_pages_are_refused(client: TestClient, headers: dict[str, str], status: int) -> None:
    assert client.post("/undo", headers=headers).status_code == status


def test_another_host_is_served_by_its_name_and_addresses(versions: Versions) -> None:
    client = TestClient(application(versions, "desk.example"), base_url="http://desk.example")
    assert client.get("/classes").json()["folder"] is None
    assert client.get("/classes", headers={"host": "192.168.0.7:8000"}).status_code == 200
    assert client.get("/classes", headers={"host": "evil.example"}).status_code == 403


def test_the_page_needs_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    text = page.text
    for name in ("style.css", "page.js", "cards.js", "server.js", "icon.svg"):
        response = client.get(f"/static/{name}")
        assert response.status_code == 200
        assert response.headers["x-content-type-options"] == "nosniff"
        text += response.text.replace("http://www.w3.org/2000/svg", "")
    assert "http://" not in text
    assert "https://" not in text
    assert "innerHTML" not in text
    assert "<script>" not in text


def test_requests_at_the_same_time(client: TestClient) -> None:
    def one(number: int) -> int:
        sent = files((f"{number}.png", png(number % 3, number)))
        if number % 4:
            return client.post("/predict", files=sent).status_code
        return client.post("/classes", files=sent, data={"name": f"new {number}"}).status_code

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(one, range(100, 124))) == {200}
    found = client.get("/classes").json()
    assert len(found["classes"]) == 9
    assert found["file"] == "c-7.pt"


def test_versions_go_to_another_folder(versions: Versions, tmp_path: Path) -> None:
    other = Versions(versions.now.classifier, tmp_path / "c.pt", tmp_path / "out")
    version, growth = other.add_class("new", [Picture("60.png", png(0, 60))])
    assert version.file == tmp_path / "out" / "c-2.pt"
    assert growth.learned == 1
    assert other.numbered(2) is version
    assert other.numbered(3) is None
    (tmp_path / "out" / "c-2.pt").unlink()
    (tmp_path / "out").rmdir()
    (tmp_path / "out").touch()
    second = TestClient(application(other), base_url=HOST)
    response = second.post("/classes", files=files(("a.png", png(1, 70))), data={"name": "more"})
    assert response.status_code == 507
    assert "choose another folder" in response.json()["error"]
    assert other.now is version


def test_a_failure_is_told(versions: Versions, monkeypatch: pytest.MonkeyPatch) -> None:
    client = TestClient(application(versions), base_url=HOST, raise_server_exceptions=False)

    def fail(*_: Any) -> None:
        raise RuntimeError("odd")

    monkeypatch.setattr("fewshot_blo.finetune.serving.app.answers", fail)
    response = client.post("/predict", files=files(("a.png", png(0, 70))))
    assert response.status_code == 500
    assert "RuntimeError: odd" in response.json()["error"]


def test_a_taken_port_is_told(
    versions: Versions, small_networks: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = ["serve", str(versions.now.file), f"--own={small_networks}", f"--port={port}"]
        assert cli.main(words) == 1
    assert f"cannot serve on port {port} of 127.0.0.1: another program listens" in (
        capsys.readouterr().err
    )
    with pytest.raises(ConfigurationError, match="choose another --host"):
        serve(versions, "no such host", 0)
    assert cli.main(["serve"]) == 2
    assert "name a file that finetune wrote" in capsys.readouterr().err
    assert cli.main(["serve", "x.pt", "--port=70000"]) == 2
    assert cli.main(["serve", "nowhere.pt"]) == 1
    assert "there is no classifier nowhere.pt" in capsys.readouterr().err


def test_a_folder_of_new_versions_is_checked_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert cli.main(["serve", "x.pt", f"--output={tmp_path / 'file'}"]) == 1
    assert "cannot write to the folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "warned"), [("127.0.0.1", False), ("localhost", False), ("", True)]
)
def test_another_host_is_warned_of(
    host: str,
    warned: bool,
    versions: Versions,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("uvicorn.Server.run", interrupted)
    serve(versions, host or "0.0.0.0", 0)
    said = capsys.readouterr().out
    assert ("anyone who reaches 0.0.0.0 can use this classifier" in said) == warned
    assert said.endswith("in a browser; Ctrl-C ends the server\nended\n")


def test_what_the_extra_installs(
    versions: Versions,
    small_networks: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in [name for name in sys.modules if name.startswith("fewshot_blo.finetune.serving.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    assert cli.main(["serve", str(versions.now.file)]) == 1
    assert (
        "is not installed: pip install '.[serve]' in a checkout of fewshot_blo"
        in capsys.readouterr().err
    )


def test_a_classifier_without_thumbnails(versions: Versions, tmp_path: Path) -> None:
    save_classifier(versions.now.classifier, tmp_path / "bare.pt", thumbnails=False)
    loaded = load_classifier(tmp_path / "bare.pt", own=versions.now.classifier.source.name)
    bare = Versions(loaded, tmp_path / "bare.pt")
    with TestClient(application(bare), base_url=HOST) as client:
        assert client.get("/classes").json()["pictures"] is False
        (row,) = client.post("/predict", files=files(("a.png", png(0, 70)))).json()
        assert row["nearest"][0]["picture"] is None
        assert row["nearest"][0]["file"] is None


def test_pictures_of_a_version_that_was_undone_can_still_be_loaded(
    versions: Versions, tmp_path: Path
) -> None:
    other = Versions(versions.now.classifier, tmp_path / "c.pt")
    version, _ = other.add_class("new", [Picture("60.png", png(0, 60))])
    assert other.undo().number == 1
    assert other.numbered(2) is version
    assert other.add_class("other", [Picture("61.png", png(1, 61))])[0].number == 3
