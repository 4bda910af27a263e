"""Files that are whole or not there, whenever the program is killed."""

import os
import uuid
from pathlib import Path


def write_whole(
    file: Path, text: str, *, replace: bool = True, durable: bool = True
) -> None:
    """Write `text` so that a reader, or a crash, sees all of it or nothing.

    Args:
        replace: put it in the place of a file of that name.
        durable: on disk when this returns, so that a power cut spares it too.

    Raises:
        FileExistsError: `replace` is off and the file is there.
        OSError: the disk is full, read-only or not there; the old file is as it was.
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
            # Atomic on NFS too, and fails where the name is taken.
            os.link(scratch, file)
    finally:
        scratch.unlink(missing_ok=True)
