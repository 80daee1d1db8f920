"""What pictures a model was trained or validated on, stage after stage, so that it is not tested on one of them.

A picture is known by database and content, and by the bytes of its reference file, whatever its name and database.
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from vtamiq.databases.schema import Database
from vtamiq.utils.digests import digest_file

MAX_READ = 5_000  # references; the 140,000 of KADIS-700k are known by name only


def reference_digests(database: Database) -> dict[str, set[str]]:
    """ref_id → digests of the reference's file and of the image that it was made from, as far as they are known; empty
    for databases of more than 5,000 references."""
    pairs = database.pairs.drop_duplicates("ref_id")
    if len(pairs) > MAX_READ:
        return {}
    digests, sources = {}, pairs.get("ref_sha256", [""] * len(pairs))
    for ref_id, path, source in zip(pairs["ref_id"], pairs["ref_path"], sources, strict=True):
        digests[ref_id] = {source} - {""}
        with contextlib.suppress(OSError):  # whoever needs the image says what is wrong with it
            digests[ref_id].add(digest_file(database.root / path))
    return digests


def pictures_of(database: Database, role: str = "train") -> dict[str, Any]:
    """What a model has seen that was trained ("train") or validated ("val") on this, as plain JSON."""
    return {
        "database": database.name,
        "role": role,
        "contents": sorted(set(database.contents.values())),
        "pictures": sorted(set().union(*reference_digests(database).values())),
    }


def unseen(database: Database, seen: Sequence[Mapping[str, Any]]) -> Database | None:
    """The pairs of contents that are not among those of `pictures_of`; None if none is left."""
    known = {content for entry in seen if entry["database"] == database.name for content in entry["contents"]}
    pictures = {picture for entry in seen for picture in entry["pictures"]}
    if pictures:
        of = database.contents
        known |= {of[ref_id] for ref_id, digests in reference_digests(database).items() if digests & pictures}
    rest = {*database.contents.values()} - known
    return database.with_contents(rest) if rest else None
