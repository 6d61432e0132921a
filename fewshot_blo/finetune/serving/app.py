"""The web application: the page, and the endpoint that it and programs use."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fewshot_blo.errors import CheckpointError, ConfigurationError, installed_by
from fewshot_blo.finetune.growing import Growth
from fewshot_blo.finetune.serving.answers import Picture, answers
from fewshot_blo.finetune.serving.guard import Guard, is_loopback
from fewshot_blo.finetune.serving.uploads import BODY_MIB, FILE_MIB, FILES, upload
from fewshot_blo.finetune.serving.versions import Version, Versions
from fewshot_blo.tasks import DataError

with installed_by(".[serve]"):
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.responses import FileResponse, JSONResponse, Response
    from starlette.routing import Mount, Route
    from starlette.staticfiles import StaticFiles

_STATIC = Path(__file__).parent / "static"
_NOT_STORED = {"cache-control": "no-store"}


def application(versions: Versions, host: str = "127.0.0.1") -> Starlette:
    """The application that serves a classifier.

    Args:
        versions: the classifier, with what it learns.
        host: the host that it is served on; requests for others are refused.
    """
    service = _Service(versions, show_folder=is_loopback(host))
    routes = [
        Route("/", service.page),
        Route("/predict", service.predict, methods=["POST"]),
        Route("/classes", service.classes),
        Route("/classes", service.add_class, methods=["POST"]),
        Route("/images", service.add_images, methods=["POST"]),
        Route("/undo", service.undo, methods=["POST"]),
        Route("/classifier.pt", service.download),
        Route("/training/{version:int}/{row:int}.jpg", service.thumbnail),
        Mount("/static", StaticFiles(directory=_STATIC)),
    ]
    handlers: dict[Any, Any] = {
        HTTPException: _http_error,
        ConfigurationError: _user_error,
        DataError: _user_error,
        CheckpointError: _disk_error,
        Exception: _failure,
    }
    guard = Middleware(Guard, host=host)
    return Starlette(routes=routes, middleware=[guard], exception_handlers=handlers)


class _Service:
    """The endpoints; what takes long runs in threads, one at a time."""

    def __init__(self, versions: Versions, show_folder: bool) -> None:
        self.versions, self._show_folder = versions, show_folder
        self._computing = threading.Lock()

    async def page(self, request: Request) -> Response:
        """The page."""
        return FileResponse(_STATIC / "index.html", headers={"cache-control": "no-cache"})

    async def predict(self, request: Request) -> Response:
        """Labels of pictures."""
        pictures = (await upload(request)).pictures

        def found() -> list[dict[str, Any]]:
            now = self.versions.now
            with self._computing:
                return answers(now.classifier, pictures, now.number)

        return _json(await run_in_threadpool(found))

    async def classes(self, request: Request) -> Response:
        """The classifier that is served."""
        return _json(self._described(self.versions.now))

    async def add_class(self, request: Request) -> Response:
        """Learns a class of the name ``name``."""
        form = await upload(request)
        name = form.fields.get("name", "")
        return await self._learn(self.versions.add_class, name, form.pictures)

    async def add_images(self, request: Request) -> Response:
        """Learns pictures of the class ``name``, which exists."""
        form = await upload(request)
        name = form.fields.get("name", "")
        return await self._learn(self.versions.add_images, name, form.pictures)

    async def undo(self, request: Request) -> Response:
        """Goes back to the version before."""
        return _json(self._described(await run_in_threadpool(self.versions.undo)))

    async def download(self, request: Request) -> Response:
        """The file of the classifier."""
        file = self.versions.now.file
        if not file.is_file():
            raise HTTPException(404, f"{file.name} was moved or removed while the server ran")
        # Stated, for systems take .pt for files of other programs.
        kind = "application/octet-stream"
        return FileResponse(file, filename=file.name, media_type=kind, headers=_NOT_STORED)

    async def thumbnail(self, request: Request) -> Response:
        """A small picture of a training image."""
        version = self.versions.numbered(request.path_params["version"])
        pictures = version.classifier.album.thumbnails if version else ()
        row = request.path_params["row"]
        if row >= len(pictures) or not pictures[row]:
            raise HTTPException(404, "there is no picture of this training image")
        kept = {"cache-control": "private, max-age=3600"}
        return Response(pictures[row], media_type="image/jpeg", headers=kept)

    async def _learn(
        self,
        how: Callable[[str, Sequence[Picture]], tuple[Version, Growth]],
        name: str,
        pictures: Sequence[Picture],
    ) -> Response:
        def learned() -> tuple[Version, Growth]:
            with self._computing:
                return how(name, pictures)

        version, growth = await run_in_threadpool(learned)
        said = {"learned": growth.describe(), "notes": list(growth.notes)}
        return _json({**self._described(version), **said})

    def _described(self, version: Version) -> dict[str, Any]:
        classifier = version.classifier
        counts = classifier.labels.bincount(minlength=len(classifier.class_names)).tolist()
        return {
            "file": version.file.name,
            "folder": str(version.file.resolve().parent) if self._show_folder else None,
            "version": version.number,
            "can_undo": self.versions.can_undo,
            "said": list(version.said),
            "classes": [
                {"name": name, "images": count}
                for name, count in zip(classifier.class_names, counts, strict=True)
            ],
            "pictures": bool(classifier.album.thumbnails),
            "known": classifier.known.describe(),
            "limits": {"files": FILES, "file_mib": FILE_MIB, "body_mib": BODY_MIB},
        }


def _json(content: Any) -> Response:
    return JSONResponse(content, headers=_NOT_STORED)


def _error(status: int, message: str) -> Response:
    return JSONResponse({"error": message}, status, headers=_NOT_STORED)


async def _http_error(request: Request, error: HTTPException) -> Response:
    return _error(error.status_code, error.detail)


async def _user_error(request: Request, error: Exception) -> Response:
    return _error(400, str(error))


async def _disk_error(request: Request, error: Exception) -> Response:
    return _error(507, str(error))


async def _failure(request: Request, error: Exception) -> Response:
    return _error(
        500, f"the server failed ({type(error).__name__}: {error}); its terminal has more"
    )
