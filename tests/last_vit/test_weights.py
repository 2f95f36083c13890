"""The weights records are complete, honest about what is unknown, and the files come whole or not at all."""

import dataclasses
import errno
import hashlib
import runpy
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

import last_vit
from last_vit import models, weights
from last_vit.dense import pooling_of
from last_vit.token_pool import TokenPool
from last_vit.weights import WEIGHTS


@pytest.mark.parametrize("record", WEIGHTS.values(), ids=WEIGHTS)
def test_records(record):
    assert record.source.startswith("https://github.com/ChengShiest/LAST-ViT/releases/download/")
    assert record.source.endswith("/" + record.file)
    known = {**record.pooling, "top_k": record.pooling["top_k"] or 1}
    pool = TokenPool(known["pool"], known["top_k"], known["sigma"], known["variant"])
    assert {"pool": pool.kind, "top_k": pool.top_k, "sigma": pool.sigma, "variant": pool.variant} == known


NAME = "vitb16_in1k_last"


class Host(BaseHTTPRequestHandler):
    """Serves `content`, of which a connection breaks after `most` bytes; thereafter `grown`, if there is any."""

    content, most, status, asked, grown = b"", None, 200, [], None

    def do_GET(self):
        version = f'"{len(self.content)}"'
        begin = int((self.headers["Range"] or "bytes=0-")[len("bytes=") : -1])
        self.asked.append(begin)
        begin = begin if self.headers["If-Range"] == version else 0
        self.send_response(self.status if self.status != 200 else 206 if begin else 200)
        self.send_header("Content-Length", str(len(self.content) - begin))
        self.send_header("ETag", version)
        self.end_headers()
        self.wfile.write(self.content[begin:][: self.most])
        if self.grown is not None:
            type(self).content, type(self).most = self.grown, None

    def log_message(self, *_):
        pass


@pytest.fixture
def host(tmp_path, monkeypatch):
    """The first released name as a small ViT of 3 classes on a server of this machine, and an empty cache."""
    vit = timm.create_model("test_vit", num_classes=3)
    torch.save({"model": vit.state_dict(), "iteration": 7}, tmp_path / "made.pth")
    handler = type("OneHost", (Host,), {"content": (tmp_path / "made.pth").read_bytes(), "asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        source = f"http://127.0.0.1:{server.server_port}/small.pth"
        record = dataclasses.replace(WEIGHTS[NAME], file="small.pth", source=source, architecture="timm:test_vit")
        monkeypatch.setitem(WEIGHTS, NAME, record)
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
        handler.vit, handler.server, handler.cache = vit, server, tmp_path / "home/hub/checkpoints"
        yield handler
        server.shutdown()


def test_one_line_to_a_model_downloads_once(host):
    model, transform = last_vit.load(NAME)
    assert pooling_of(model) == {"pool": "last", "top_k": 1, "variant": "release", "sigma": None}
    assert all(torch.equal(value, host.vit.state_dict()[key]) for key, value in model.state_dict().items())
    assert transform(Image.new("RGB", (300, 280))).shape == (3, 224, 224)
    assert sorted(path.name for path in host.cache.iterdir()) == ["small.pth", "small.pth.sha256"]
    digest = hashlib.sha256(host.content).hexdigest()
    assert (host.cache / "small.pth.sha256").read_text() == f"{digest}\n"
    repository = str(Path(__file__).resolve().parents[2])
    again, _ = torch.hub.load(repository, NAME, source="local", top_k=2)
    assert (pooling_of(again)["top_k"], host.asked) == (2, [0])
    assert runpy.run_path(f"{repository}/hubconf.py").keys() >= WEIGHTS.keys()
    trained = models.parse_model_argument(f"A=last_vit:{NAME}").load()
    assert (trained.pooling_source, trained.checkpoint_sha256) == ("published", digest[:16])
    (host.cache / "small.pth").write_bytes(host.content[:-1])
    with pytest.raises(ValueError, match=rf"small\.pth has SHA-256 .* but had {digest} when it came: delete it"):
        last_vit.load(NAME)


@pytest.mark.parametrize("more", [None, b"of a new version"])
def test_a_broken_connection_is_taken_up_where_it_broke(host, more):
    """Unless the file has become another meanwhile, which then comes whole."""
    most = host.most = len(host.content) // 2 + 1
    host.grown = more and host.content + more
    weights._fetch(weights.WEIGHTS[NAME].source, host.cache / "small.pth", NAME)
    assert host.asked == [0, most]
    assert (host.cache / "small.pth").read_bytes() == host.content


@pytest.mark.parametrize("fault", ["offline", "404", "torn", "full disk"])
def test_what_stops_a_download_leaves_nothing(host, monkeypatch, fault):
    error, match = FileNotFoundError, rf"small\.pth cannot be downloaded .*last_vit:{NAME}@<file>"
    if fault == "offline":
        host.server.shutdown()
        host.server.server_close()
    elif fault == "404":
        host.status = 404
    elif fault == "torn":
        host.most = 100
    else:
        error, match = OSError, r"cannot keep .*No space left on device\): make room, or set TORCH_HOME"

        def no_room(descriptor):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("last_vit.atomic_file.os.fsync", no_room)
    with pytest.raises(error, match=match):
        last_vit.load(NAME)
    assert not host.cache.exists() or not list(host.cache.iterdir())


def test_a_local_file_is_enough_and_what_it_cannot_be(host, tmp_path):
    model, _ = last_vit.load(NAME, file=tmp_path / "made.pth", pool="cls")
    assert (pooling_of(model)["pool"], host.asked) == ("cls", [])
    for call, match in (
        (lambda: last_vit.load("vit"), "released models are vitb16_in1k_last, .*; got 'vit'"),
        (lambda: last_vit.load("vit_dino_last", tmp_path / "other.pth"), r"is not dino0080\.pth: no cls_token of 384"),
        (lambda: models.parse_model_argument(f"last_vit:{NAME}@random").load(), "with their own weights"),
    ):
        torch.save({"weight": torch.ones(2)}, tmp_path / "other.pth")
        with pytest.raises(ValueError, match=match):
            call()
    torch.save({"cls_token": torch.ones(1, 1, 384)}, tmp_path / "other.pth")
    record, own = weights.find_released("vit_dino_last", tmp_path / "other.pth")
    assert (own["spec"], own["pool"], own["top_k"]) == ("dino:vit_small/16", "last", 1)
    assert "its K is not" in record.pooling_words
