"""Fetch the scripts that the page of `shoal ui` uses, and note where they come from.

    python tools/vendor.py 4.0.1

takes the files out of that version's npm package and writes them, with their hashes, into
src/shoal/watch/ui/static. Needs npm.
"""

import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

STATIC = Path(__file__).parents[1] / "src" / "shoal" / "watch" / "ui" / "static"
PACKAGE, LICENCE = "htmx.org", "0BSD"
FILES = {
    "package/dist/htmx.min.js": "htmx.min.js",
    "package/dist/ext/hx-sse.min.js": "hx-sse.min.js",
    "package/LICENSE": "htmx.LICENSE",
}


def main(version: str) -> None:
    """Write the files of that version, and their hashes."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", "--silent", f"{PACKAGE}@{version}", "--pack-destination", folder]
        subprocess.run(command, check=True)  # the version is the caller's own
        [packed] = Path(folder).iterdir()
        content = packed.read_bytes()
    entries: list[str] = []
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for inside, name in FILES.items():
            member = archive.extractfile(inside)
            if member is None:
                sys.exit(f"{PACKAGE} {version} has no {inside}")
            data = member.read()
            (STATIC / name).write_bytes(data)
            entries.append(
                f'[[file]]\nname = "{name}"\npackage = "{PACKAGE}"\nversion = "{version}"\n'
                f'from = "{inside}"\nlicence = "{LICENCE}"\n'
                f'sha256 = "{hashlib.sha256(data).hexdigest()}"\n'
            )
    head = "# Written by `nox -s vendor`; a test checks the hashes.\n\n"
    (STATIC / "VENDORED.toml").write_text(head + "\n".join(entries))


if __name__ == "__main__":
    main(sys.argv[1])
