"""Atomic writes: a file is complete or absent, whenever the program is killed."""

import os
import uuid
from pathlib import Path


def write_whole(
    file: Path, text: str, *, replace: bool = True, durable: bool = True
) -> None:
    """Write `text` so that no reader, even after a crash, sees a part of it.

    Args:
        replace: overwrite an existing file.
        durable: sync it to the disk, so that it survives a power cut.

    Raises:
        FileExistsError: the file exists and `replace` is off.
        OSError: the disk is full or read-only; an existing file is unchanged.
    """
    scratch = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}")
    try:
        with scratch.open("x", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        if replace:
            scratch.replace(file)
        else:
            # A link is atomic on NFS too, and fails if the name is taken.
            os.link(scratch, file)
    finally:
        scratch.unlink(missing_ok=True)
