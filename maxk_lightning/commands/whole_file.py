"""Small files that are either whole or as they were, whenever a run is killed."""

from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write a text beside the file and rename it; makes the directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
