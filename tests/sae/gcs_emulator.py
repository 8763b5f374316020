"""Google Cloud Storage over HTTP on this machine: `gcp_storage_emulator`, and what it lacks.

TensorStore reads an object's generation from a header, writes only what nobody else has written
since, and lists ranges of names; gcsfs moves objects on the server.
"""

import contextlib
import socket
from collections.abc import Iterator
from http import HTTPStatus

from gcp_storage_emulator import server
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects


def _get(request, response, storage):
    try:
        found = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])
    except NotFound:
        response.status = HTTPStatus.NOT_FOUND
        return
    if request.query.get("ifGenerationNotMatch") == [found["generation"]]:
        response.status = HTTPStatus.NOT_MODIFIED
        return
    response["x-goog-generation"] = found["generation"]
    objects.get(request, response, storage)


def _insert(request, response, storage):
    name, wanted = request.query.get("name"), request.query.get("ifGenerationMatch")
    if name and wanted:
        try:
            there = storage.get_file_obj(request.params["bucket_name"], name[0])["generation"]
        except NotFound:
            there = "0"
        if [there] != wanted:
            response.status = HTTPStatus.PRECONDITION_FAILED
            return
    objects.insert(request, response, storage)


def _list(request, response, storage):
    get = {key: values[0] for key, values in request.query.items()}
    bucket, prefix = request.params["bucket_name"], get.get("prefix")
    files, prefixes = storage.get_file_list(bucket, prefix, get.get("delimiter"), None)
    first, end = get.get("startOffset", ""), get.get("endOffset")
    files = [f for f in files if f["name"] >= first and (end is None or f["name"] < end)]
    response.json({"kind": "storage#objects", "prefixes": prefixes, "items": files})


def _move(request, response, storage):
    request.params["dest_bucket_name"] = request.params["bucket_name"]
    objects.copy(request, response, storage)
    objects.delete(request, response, storage)


_BUCKET = r"/storage/v1/b/(?P<bucket_name>[-.\w]+)"
_OBJECT = rf"{_BUCKET}/o/(?P<object_id>.+)"
HANDLERS = (
    (rf"^{_OBJECT}/moveTo/o/(?P<dest_object_id>.+)$", {server.POST: _move}),
    (rf"^/upload{_BUCKET}/o$", {server.POST: _insert, server.PUT: objects.upload_partial}),
    (rf"^{_BUCKET}/o$", {server.GET: _list}),
    (rf"^{_OBJECT}$", {server.GET: _get, server.DELETE: objects.delete}),
)


@contextlib.contextmanager
def running() -> Iterator[str]:
    """Yields the address of an emulator with one bucket, `bucket`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    before, server.HANDLERS = server.HANDLERS, (*HANDLERS, *server.HANDLERS)
    there = server.create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
    there.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        there.stop()
        server.HANDLERS = before


def environment(address: str) -> dict[str, str]:
    """What makes gcsfs, Google's client and TensorStore ask there."""
    return {
        "STORAGE_EMULATOR_HOST": address,
        "TENSORSTORE_GCS_HTTP_URL": address,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "anyone",
        "GOOGLE_CLOUD_PROJECT": "none",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        "NO_GCE_CHECK": "true",
    }
