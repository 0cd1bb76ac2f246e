"""Writes test images as OCI layouts, without a base image and without other tools.

Name and seed determine the content. So the same call always gives the same digest, and another seed
gives an image that no node has ever pulled. The layouts are kept in the cache.
"""

import gzip
import hashlib
import io
import json
import os
import random
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster import binaries, paths
from tests.cluster.errors import ClusterError
from tests.cluster.progress import step

MiB = 1 << 20
GiB = 1 << 30
_CREATED = "2026-01-01T00:00:00Z"
UNUSED = 7 * 86400.0
"""Seconds without use after which a layout is deleted from the cache."""
_FORMAT = "2"  # part of the cache's key: raise it when the content below changes
_APPLETS = (
    "cat cp date df echo env grep head hostname httpd id ip ls mkdir nc nslookup ping ps rm sed sh "
    "sleep tail test touch true wc wget"
)
_CHUNK = 128 * 1024  # bytes of a layer per write: the largest block of zstd
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_INDEX = "application/vnd.oci.image.index.v1+json"


@dataclass(frozen=True, slots=True)
class Spec:
    """One test image."""

    about: str
    layer_sizes: tuple[int, ...] = ()  # of random bytes
    files: int = 1  # in each of these layers
    zstd: bool = False  # whether these layers are zstd and unpack to 2.5 times their size
    runnable: bool = True  # whether it has a layer with a program, which is the entrypoint
    program: str = "pause"  # or busybox
    platforms: tuple[str, ...] = ("amd64",)


SPECS = {
    "pause": Spec("the sandbox image; sleeps until SIGTERM, `-v` exits 0"),
    "app": Spec("a tiny workload", (64 * 1024,)),
    "busybox": Spec("a shell with wget, nc, nslookup …", program="busybox"),
    "tiny": Spec("64 KiB; one of many with `seed`", (64 * 1024,)),
    "medium": Spec("32 MiB, one layer", (32 * MiB,)),
    "part": Spec("40 MiB that do not compress, one layer", (40 * MiB,)),
    "big": Spec("300 MiB that do not compress, one layer", (300 * MiB,)),
    "fat": Spec("the files of `split` in one layer", (GiB,), files=8, zstd=True, runnable=False),
    "split": Spec("1 GiB in 8 layers, a file each", (GiB // 8,) * 8, zstd=True, runnable=False),
    "layers": Spec("64 MiB in 4 layers", (16 * MiB,) * 4, runnable=False),
    "data": Spec("files only: no runnable file, no entrypoint", (4 * MiB,), runnable=False),
    "foreign": Spec("an index without amd64", (MiB,), platforms=("arm64", "s390x")),
    "multiarch": Spec("an index for amd64 and arm64", (MiB,), platforms=("amd64", "arm64")),
}


def build(name: str, *, seed: int = 0) -> Path:
    """The OCI layout of a test image, from the cache or made now."""
    if name not in SPECS:
        raise ClusterError(f"no test image {name!r}: there is {', '.join(SPECS)}")
    spec = SPECS[name]
    program = _program(spec)
    key = paths.digest([_FORMAT, repr(spec), program, str(seed)])
    layout = paths.cache() / "images" / f"{name}-{seed}-{key}"
    if not _use(layout):
        layout.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".making-", dir=layout.parent) as scratch:
            made = Path(scratch, "layout")
            # fat and split use the same random stream, because they must have the same files.
            stream = "fat" if name == "split" else name
            if sum(spec.layer_sizes) > 64 * MiB:
                with step(f"making the test image {name} (seed {seed})"):
                    _write(made, spec, program, f"{stream}/{seed}")
            else:
                _write(made, spec, program, f"{stream}/{seed}")
            try:
                made.rename(layout)
            except OSError:  # another run was faster
                if not _use(layout):
                    raise
        _forget_unused(layout.parent)
    return layout


def _use(layout: Path) -> bool:
    """Whether the layout exists. If so, marks it as used, so that no other run deletes it."""
    with paths.locked("images"):
        if not layout.exists():
            return False
        os.utime(layout)
        return True


def _forget_unused(folder: Path) -> None:
    """Deletes layouts that no run has used for a week: mostly earlier versions of the images."""
    with paths.locked("images"):
        for layout in folder.iterdir():
            try:
                unused = time.time() - layout.stat().st_mtime
            except FileNotFoundError:  # another run has finished making it
                continue
            if unused > UNUSED:
                shutil.rmtree(layout, ignore_errors=True)


def _program(spec: Spec) -> bytes:
    if not spec.runnable:
        return b""
    if spec.program == "pause":
        return binaries.path(binaries.pause(), "pause").read_bytes()
    busybox = Path("/bin/busybox")
    if not busybox.exists():
        raise ClusterError(f"no {busybox}: run {paths.HERE / 'install-debian.sh'}")
    return busybox.read_bytes()


def forget(name: str, *, seed: int) -> None:
    """Removes an image from the cache, for tests that make many big images."""
    for layout in (paths.cache() / "images").glob(f"{name}-{seed}-*"):
        shutil.rmtree(layout)


def digest(layout: Path) -> str:
    """The digest under which a registry will list the image."""
    index = json.loads((layout / "index.json").read_text())
    return str(index["manifests"][0]["digest"])


def archive(layout: Path, reference: str, target: Path) -> Path:
    """A tar that `ctr images import` takes, with the image's name in it."""
    index = json.loads((layout / "index.json").read_text())
    index["manifests"][0]["annotations"] = {"io.containerd.image.name": reference}
    with tarfile.open(target, "w") as tar:
        add_file(tar, "index.json", json.dumps(index).encode())
        for name in ("oci-layout", "blobs"):
            tar.add(layout / name, name)
    return target


def write_single_layer(
    folder: Path, fill: Callable[[tarfile.TarFile], None], run: dict[str, Any]
) -> None:
    """An OCI layout of one layer that `fill` writes; `run` is the image's Env, Cmd and so on."""

    def write(file: io.BufferedIOBase) -> None:
        with tarfile.open(fileobj=file, mode="w") as tar:
            fill(tar)

    layout = _Layout(folder)
    layer = layout.blob(_LAYER, write)
    manifest = _manifest(layout, "amd64", [layer], [layer["digest"]], run)
    (folder / "index.json").write_text(json.dumps(_index([manifest])))


class _Layout:
    """Writes the blobs of an OCI layout."""

    def __init__(self, folder: Path) -> None:
        self._blobs = folder / "blobs" / "sha256"
        self._blobs.mkdir(parents=True)
        (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def json(self, kind: str, content: Any) -> dict[str, Any]:
        data = json.dumps(content, sort_keys=True).encode()
        return self.blob(kind, lambda file: file.write(data))

    def layer(
        self, write: Callable[[io.BufferedIOBase], object], *, zstd: bool
    ) -> tuple[dict[str, Any], str]:
        """Writes a layer. Returns it and its diff ID: the digest of the uncompressed tar."""
        if not zstd:
            layer = self.blob(_LAYER, write)
            return layer, layer["digest"]
        content = hashlib.sha256()

        def compress(file: io.BufferedIOBase) -> None:
            with _Zstd(file, content.update) as frame:
                write(frame)

        layer = self.blob(f"{_LAYER}+zstd", compress)
        return layer, f"sha256:{content.hexdigest()}"

    def blob(self, kind: str, write: Callable[[io.BufferedIOBase], object]) -> dict[str, Any]:
        scratch = self._blobs / ".blob"
        with scratch.open("wb") as file:
            write(file)
        with scratch.open("rb") as file:
            name = hashlib.file_digest(file, "sha256").hexdigest()
        size = scratch.stat().st_size
        scratch.rename(self._blobs / name)
        return {"mediaType": kind, "digest": f"sha256:{name}", "size": size}


def _write(folder: Path, spec: Spec, program: bytes, stream: str) -> None:
    layout = _Layout(folder)
    layers, diff_ids = [], []
    if program:
        tar = _program_tar(spec.program, program)
        layers.append(layout.blob(f"{_LAYER}+gzip", lambda file: file.write(_gzip(tar))))
        diff_ids.append(f"sha256:{hashlib.sha256(tar).hexdigest()}")
    source = random.Random(stream)
    for number, size in enumerate(spec.layer_sizes):
        names = [f"data/{number * spec.files + each}" for each in range(spec.files)]
        # Random bytes do not compress, and gzip would take 10 s for 300 MiB. Zeros are added so
        # that the layers compress as much as published images (docs/images.md).
        zeros = size // spec.files * 3 // 2 if spec.zstd else 0
        write = _random_tar(names, size // spec.files, zeros, source)
        layer, diff_id = layout.layer(write, zstd=spec.zstd)
        layers.append(layer)
        diff_ids.append(diff_id)
    config = {"Entrypoint": [f"/bin/{spec.program}"]} if program else {}
    manifests = [
        _manifest(layout, platform, layers, diff_ids, config) for platform in spec.platforms
    ]
    top = manifests[0] if len(manifests) == 1 else layout.json(_INDEX, _index(manifests))
    (folder / "index.json").write_text(json.dumps(_index([top])))


def _manifest(
    layout: _Layout,
    architecture: str,
    layers: Sequence[dict[str, Any]],
    diff_ids: Sequence[str],
    run: dict[str, Any],
) -> dict[str, Any]:
    config = {
        "architecture": architecture,
        "os": "linux",
        "config": run,
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
        "history": [{"created": _CREATED, "created_by": "tests/cluster"} for _ in diff_ids],
    }
    descriptor = layout.json("application/vnd.oci.image.config.v1+json", config)
    body = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": descriptor,
        "layers": list(layers),
    }
    platform = {"architecture": architecture, "os": "linux"}
    return layout.json(_MANIFEST, body) | {"platform": platform}


def _index(manifests: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {"schemaVersion": 2, "mediaType": _INDEX, "manifests": list(manifests)}


def _program_tar(name: str, program: bytes) -> bytes:
    """The program in /bin, and for busybox links with the names of its applets."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        add_file(tar, f"bin/{name}", program)
        for applet in _APPLETS.split() if name == "busybox" else ():
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, name
            tar.addfile(link)
    return buffer.getvalue()


def _gzip(data: bytes) -> bytes:
    return gzip.compress(data, compresslevel=6, mtime=0)


def _random_tar(
    names: Sequence[str], size: int, zeros: int, source: random.Random
) -> Callable[[io.BufferedIOBase], object]:
    """Writes files of `size` random bytes, each with a file of `zeros` zeros if that is not 0."""

    def write(file: io.BufferedIOBase) -> None:
        with tarfile.open(fileobj=file, mode="w|", bufsize=_CHUNK) as tar:
            for name in names:
                tar.addfile(_entry(name, size), _Random(source, size))  # type: ignore[arg-type]
                if zeros:
                    with Path("/dev/zero").open("rb") as nothing:
                        tar.addfile(_entry(f"{name}.zeros", zeros), nothing)

    return write


class _Zstd(io.BufferedIOBase):
    """Makes each write a block of a zstd frame (RFC 8878): a raw block, or the number of zeros if
    all bytes are 0. Python 3.11 has no zstd; zstd would write such blocks too. `see` gets all data.
    """

    def __init__(self, file: io.BufferedIOBase, see: Callable[[bytes], None]) -> None:
        self._file, self._see = file, see
        # The magic number; no content size, checksum or dictionary; a window of 2^(10 + 7) bytes.
        file.write(bytes.fromhex("28b52ffd 00 38"))

    def write(self, data: Any) -> int:
        self._see(data)
        zeros = data.count(0) == len(data)
        # Three bytes: one bit for the last block, two bits for the kind (0: raw, 1: one repeated
        # byte), and the size.
        self._file.write((len(data) << 3 | zeros << 1).to_bytes(3, "little"))
        self._file.write(data[:1] if zeros else data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.write(b"\1\0\0")
            super().close()


class _Random:
    """A file of random bytes with the one method that `tarfile` uses."""

    def __init__(self, source: random.Random, size: int) -> None:
        self._source, self._left = source, size

    def read(self, size: int) -> bytes:
        size = min(size, self._left)
        self._left -= size
        return self._source.randbytes(size)


def _entry(name: str, size: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, 0o755
    return entry


def add_file(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Adds a file that every user may read and execute."""
    tar.addfile(_entry(name, len(content)), io.BytesIO(content))


def cache_size() -> int:
    """Bytes of all layouts in the cache."""
    files = (path for path in (paths.cache() / "images").rglob("*") if path.is_file())
    return sum(path.stat().st_size for path in files)
