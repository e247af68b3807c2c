"""The demo's source files: fetched by package name with npm and apt-get, checked, unpacked without installing.

A file is named by its id: the folder's short name and the path in it, e.g. "fluent/1f98a.webp". A furniture file lies
in a zip: "furniture/Scopia/scopia/cat.png".
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Package:
    """One pinned package of a registry."""

    name: str
    version: str
    client: str  # npm or apt
    file: str  # what the client names the archive
    sha256: str

    def command(self) -> list[str]:
        if self.client == "npm":
            return ["npm", "pack", "--silent", f"{self.name}@{self.version}"]
        return ["apt-get", "download", f"{self.name}={self.version}"]


@cache
def _table() -> dict[str, Any]:
    return json.loads((HERE / "packages.json").read_text())


def packages() -> list[Package]:
    """Every package the demo is drawn from."""
    return [Package(**row) for row in _table()["packages"]]


def fetch_sources(downloads: Path, progress: Callable[[str], None]) -> None:
    """Download and unpack every package into `downloads`; what is there already is kept.

    Raises RuntimeError when a client is missing or fails and ValueError when an archive is not the pinned one.
    """
    downloads.mkdir(parents=True, exist_ok=True)
    for package in packages():
        archive = downloads / package.file
        if not archive.is_file():
            progress(f"fetching {package.name} {package.version}")
            _download(package, downloads)
        unpacked = _unpacked(downloads, package.name)
        if not unpacked.is_dir():
            progress(f"unpacking {package.name}")
            _verify(package, archive)
            _unpack(archive, unpacked)


def _download(package: Package, downloads: Path) -> None:
    command = package.command()
    if shutil.which(command[0]) is None:
        raise RuntimeError(f"{package.name} is fetched with {command[0]}, which is not on this machine; install it")
    done = subprocess.run(command, cwd=downloads, capture_output=True, text=True)
    if done.returncode or not (downloads / package.file).is_file():
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        hint = "run `apt-get update` first, " if package.client == "apt" else ""
        raise RuntimeError(
            f"`{' '.join(command)}` did not bring {package.file} ({last}); {hint}or put the file into {downloads} "
            "yourself"
        )


def _verify(package: Package, archive: Path) -> None:
    digest = hashlib.sha256()
    with archive.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    found = digest.hexdigest()
    if found != package.sha256:
        raise ValueError(f"{archive} should have sha256 {package.sha256} and has {found}; delete it and run again")


def _unpack(archive: Path, folder: Path) -> None:
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if archive.suffix == ".deb":
        if shutil.which("dpkg-deb") is None:
            raise RuntimeError(f"{archive.name} is unpacked with dpkg-deb, which is not on this machine; install dpkg")
        subprocess.run(["dpkg-deb", "-x", str(archive), str(partial)], check=True)
    else:
        with tarfile.open(archive) as tar:
            tar.extractall(partial, filter="data")
    partial.rename(folder)  # a folder with its final name is complete


def _unpacked(downloads: Path, package: str) -> Path:
    return downloads / "unpacked" / package.strip("@").replace("/", "-")


def read_source(downloads: Path, source: str) -> bytes:
    """The bytes of a file by its id. Raises FileNotFoundError naming the id."""
    short, path = source.split("/", 1)
    package, folder = _table()["folders"][short]
    root = _unpacked(downloads, package) / folder
    try:
        if short == "furniture":
            catalog, member = path.split("/", 1)
            with zipfile.ZipFile(root / f"{catalog}.sh3f") as archive:
                return archive.read(member)
        return (root / path).read_bytes()
    except (FileNotFoundError, KeyError) as error:
        raise FileNotFoundError(f"the picture {source} is not in {package}; delete {root} and run again") from error


def write_ledger(path: Path, downloads: Path, sources: Iterable[str]) -> None:
    """Write a CSV with one row per source file: where it comes from, its licence, its author, its sha256."""
    by_name = {package.name: package for package in packages()}
    creators = furniture_creators(downloads)
    with path.open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["file", "package", "version", "licence", "author", "sha256"])
        for source in sorted(set(sources)):
            package = by_name[_table()["folders"][source.split("/")[0]][0]]
            licence, author = licence_of(source)
            digest = hashlib.sha256(read_source(downloads, source)).hexdigest()
            rows.writerow([source, package.name, package.version, licence, creators.get(source, author), digest])


def licence_of(source: str) -> tuple[str, str]:
    """Licence and author of a file by its id."""
    fitting = [prefix for prefix in _table()["licences"] if source.startswith(prefix)]
    if not fitting:
        raise ValueError(f"{source} has no licence in packages.json; add it there or do not use the file")
    licence, author = _table()["licences"][max(fitting, key=len)]
    return licence, author


def furniture_creators(downloads: Path) -> dict[str, str]:
    """Source id -> creator, as the furniture catalogs name them."""
    package, folder = _table()["folders"]["furniture"]
    creators = {}
    for catalog in sorted((_unpacked(downloads, package) / folder).glob("*.sh3f")):
        with zipfile.ZipFile(catalog) as archive:
            text = archive.read("PluginFurnitureCatalog.properties").decode("latin-1")
        entries = {kind: dict(re.findall(rf"^{kind}#(\d+)=(.*?)\s*$", text, re.M)) for kind in ("icon", "creator")}
        for number, icon in entries["icon"].items():
            if number in entries["creator"]:
                creators[f"furniture/{catalog.stem}{icon}"] = entries["creator"][number]
    return creators
