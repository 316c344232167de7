"""The wheel and the source distribution of this repository, made without network."""

import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

from tests.support.paths import ROOT

SOURCES = ("maxk_lightning", "configs", "examples", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
SOURCES += ("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md")
"What a distribution is made of; building leaves files behind, so it is made in a copy."
PIP = [sys.executable, "-m", "pip", "--quiet"]
SDIST = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"


def copy_sources(directory: Path) -> Path:
    """Copy what a distribution is made of to a new directory."""
    directory.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, directory)
    return directory


def build_wheel(source: Path, out: Path) -> Path:
    """Build a wheel of an unpacked source."""
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), str(source)]
    subprocess.run([*PIP, *build], check=True, timeout=300)
    (wheel,) = out.glob("*.whl")
    return wheel


def build_sdist(source: Path, out: Path) -> Path:
    """Build a source distribution in a new directory and unpack it there; returns what it holds."""
    out.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", SDIST, str(out)], cwd=source, capture_output=True, text=True, check=True, timeout=300
    )
    with tarfile.open(out / done.stdout.splitlines()[-1]) as archive:
        archive.extractall(out, filter="data")
    (unpacked,) = (path for path in out.iterdir() if path.is_dir())
    return unpacked


def environment_with(wheel: Path, directory: Path) -> Path:
    """Make an environment that finds this package in a wheel, and what it depends on where this interpreter does.

    Returns its interpreter. This package's editable installation is not seen from it: `.pth` files count only in an
    environment's own site-packages.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(directory)], check=True, timeout=120)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(directory), "platbase": str(directory)}))
    subprocess.run([*PIP, "install", "--no-deps", "--target", str(site), str(wheel)], check=True, timeout=120)
    others = [path for path in sys.path if "site-packages" in path and Path(path).is_dir()]
    (site / "others.pth").write_text("".join(f"{path}\n" for path in others))
    return directory / "bin" / "python"
