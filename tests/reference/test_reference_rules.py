"""Each rule on files of section 14, broken by a file that is right but for that."""

import copy
import hashlib
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from reference_draft import (
    COLUMNS,
    ROWS,
    Draft,
    Raw,
    coefficients,
    entry,
    features,
    masked,
    pack,
    seal,
    segment,
    table,
    task,
    tensor,
    vector,
)
from tsw_reference import BrokenError, describe, read
from tsw_reference.digest import content_digest
from tsw_reference.layout import CHUNK

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("*.tsw"))
SPEC = Path(__file__).parents[2] / "spec" / "tsw-1.md"
BIG = 1 << 48


def frame(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=False).compress(data)


def document(edit: Callable[[dict[str, Any]], object]) -> Draft:
    return Draft(edit=edit)


def in_base(key: str, value: Any) -> Draft:
    return document(lambda index: index["base"].__setitem__(key, value))


def at_top(key: str, value: Any) -> Draft:
    return document(lambda index: index.__setitem__(key, value))


def in_frame(**wrong: Any) -> Draft:
    return Draft(frame=wrong)


def of_tensors(*base: dict[str, Any]) -> Draft:
    """A base of these tensors and a task that does nothing."""
    return Draft(base=list(base), extra=[], aliases={}, tasks=[task("t", [])])


def of_extra(*extra: dict[str, Any]) -> Draft:
    return Draft(extra=list(extra))


def with_entry(number: int, **fields: Any) -> Draft:
    draft = Draft()
    draft.entry(number).update(fields)
    return draft


def with_segment(number: int, place: int, **fields: Any) -> Draft:
    draft = Draft()
    draft.segment(number, place).update(fields)
    return draft


def with_mask(codec: int, payload: bytes, parameter: int = 0, count: int = 4, **fields: Any) -> Draft:
    """Another encoding of the mask of `a`; as many signs as `count`."""
    draft = Draft()
    draft.segment(0, 2).update(codec=codec, payload=payload, parameter=parameter, count=count, **fields)
    draft.entry(0)["active"] = count
    draft.entry(0)["segments"][3] = segment(2, 0, 0, b"")
    return draft


VECTOR = vector("a", 11, 2, 5, payload=bytes(20))
OTHER = vector("a", 11, 2, 5, payload=bytes(range(20)))  # its SHA-256 is the larger one


def with_masked(*shared: dict[str, Any], **fields: Any) -> Draft:
    """A base of `a` and a masked entry for it; `shared` instead of its vector, `fields` of the entry."""
    tasks = [task("t", [masked(0, 12) | fields])]
    return Draft(
        [tensor("a", 12, 2, 5), tensor("c", 2, 3)], [], {"d": 0}, tasks, list(shared) or [copy.deepcopy(VECTOR)]
    )


def with_vector(name: str = "a", dtype: int = 11, shape: tuple[int, ...] = (2, 5), **fields: Any) -> Draft:
    """The same with another vector."""
    return with_masked(vector(name, dtype, *shape, payload=bytes(20), **fields))


def with_vector_segment(**fields: Any) -> Draft:
    draft = with_masked()
    draft.shared[0]["segments"][0].update(fields)
    return draft


def with_masked_segments(*parts: dict[str, Any]) -> Draft:
    return with_masked(segments=list(parts))


def with_two(first: dict[str, Any], second: dict[str, Any], *numbers: int) -> Draft:
    """Two vectors, and a task for each of these numbers."""
    draft = with_masked(first, second)
    draft.tasks = [task(str(at), [masked(0, 12, vector=number)]) for at, number in enumerate(numbers)]
    return draft


def document_of_all(edit: Callable[[dict[str, Any]], object]) -> Draft:
    draft = with_masked()
    draft.edit = edit
    return draft


def document_of_shared(edit: Callable[[dict[str, Any]], object]) -> Draft:
    return document_of_all(lambda index: edit(index["shared"]))


def nothing_shared(index: dict[str, Any]) -> None:
    index["shared"] = {"dims": b"", "names": b"", "roles": b"", "segments": b"", "tensors": b""}
    index["tasks"] = []


def in_shared(key: str, value: Any) -> Draft:
    return document_of_shared(lambda shared: shared.__setitem__(key, value))


def without_shared() -> Draft:
    """A masked entry of an empty tensor, and no shared arrays."""
    tasks = [task("t", [entry(0, 2, 12, [])])]
    return Draft(base=[tensor("a", 12, 0)], extra=[], aliases={}, tasks=tasks)


ROUTER = {"extractor": "é", "k": 3, "metric": "cosine", "preprocessing": ""}


def routed(*arrays: dict[str, Any], **keys: Any) -> Draft:
    """The usual file with a router; `arrays` instead of its features, other `keys`."""
    return Draft(shared=list(arrays) or [features("t", 3, 2)], router=dict(sorted((ROUTER | keys).items())))


def routed_without(key: str) -> Draft:
    draft = routed()
    draft.edit = lambda index: index["router"].pop(key)
    return draft


def routed_again(*arrays: dict[str, Any]) -> Draft:
    """Two tasks, `t` and `u`, with these features."""
    draft = routed(*arrays)
    draft.tasks.append(task("u", []))
    return draft


def with_masked_router() -> Draft:
    draft = with_masked()
    draft.router = ROUTER
    return draft


def mask_over_features() -> Draft:
    """A masked entry of `a` whose vector is the features of a task `a`."""
    draft = with_masked(copy.deepcopy(VECTOR), features("a", 2, 5))
    draft.tasks = [task("a", [masked(0, 12)]), task("z", [masked(0, 12, vector=1)])]
    draft.router = ROUTER
    return draft


def mask_over_coefficients() -> Draft:
    """A masked entry of `a` whose vector is a table `a`."""
    draft = with_masked(copy.deepcopy(VECTOR), coefficients("a", (0.0,) * 5, (0.0,) * 5))
    draft.tasks = [
        task("t", [masked(0, 12)]),
        *(task(name, []) for name in "uvw"),
        task("z", [masked(0, 12, vector=1)]),
    ]
    draft.tables = {"a": table((0, 1), list("tuvwz"))}
    return draft


def signed(rewrite: Callable[[dict[str, Any]], object]) -> Draft:
    """A router in a file of nothing else with the right content id; then changed."""
    draft = of_tensors()
    draft.shared, draft.router = [features("t", 3, 2)], dict(ROUTER)
    right = content_digest(read(draft.build()))
    draft.edit = lambda index: (first(index, "content_id", right), rewrite(index))
    return draft


CLAMP = struct.pack("<2f", -0.5, 1.0)
NAN, INFINITY = float("nan"), float("inf")


def tabled(*arrays: dict[str, Any], **keys: Any) -> Draft:
    """The usual file and a task `u`, with a table `k` of tensors `a` and `c`; `arrays` instead of its own, other `keys`."""
    draft = Draft(shared=list(arrays) or [coefficients("k", (0.5, 1.0), (-2.0, 3.0))])
    draft.tasks.append(task("u", []))
    draft.tables = {"k": dict(sorted((table((0, 2), ["u", "t"], clamp=CLAMP) | keys).items()))}
    return draft


def tabled_of(rewrite: Callable[[dict[str, Any]], object]) -> Draft:
    """The same, the document changed."""
    draft = tabled()
    draft.edit = rewrite
    return draft


def two_tables(*arrays: dict[str, Any]) -> Draft:
    """The same with a second table `l`."""
    draft = tabled(coefficients("k", (0.5, 1.0), (-2.0, 3.0)), *arrays)
    draft.tables["l"] = table((1,), ["t"])
    return draft


def signed_tables(rewrite: Callable[[dict[str, Any]], object]) -> Draft:
    """Tables and a router in a file of nothing else with the right content id; then changed."""
    draft = Draft(base=[tensor(name, 12, flags=1) for name in "ab"], extra=[], aliases={}, tasks=[task("t", [])])
    draft.tasks.append(task("u", []))
    draft.shared, draft.router = [coefficients("k", (0.5, 1.0)), features("t", 3, 2)], dict(ROUTER)
    draft.tables = {"k": table((1,), ["u", "t"], clamp=CLAMP)}
    right = content_digest(read(draft.build()))
    draft.edit = lambda index: (first(index, "content_id", right), rewrite(index["coefficients"]["k"]))
    return draft


def mapped(**fields: Any) -> Draft:
    return Draft(profile="mapped", **fields)


def mapped_with_an_encoded_plane() -> Draft:
    draft = mapped()
    draft.segment(0, 3).update(codec=5, payload=b"\x0a")
    return draft


def mapped_with_encoded_data() -> Draft:
    draft = mapped()
    draft.segment(1, 0).update(codec=17, payload=frame(bytes(8)))
    return draft


def first(index: dict[str, Any], key: str, value: Any) -> None:
    """Add a key to a map, where it belongs."""
    members = dict(sorted((index | {key: value}).items()))
    index.clear()
    index.update(members)


WIDE = {f"k{number:04}": "" for number in range(4096)}
EMPTY_LIST = {"dims": b"", "names": b"", "tensors": b""}
EMPTY_TASK = {"checkpoint": {}, "entries": b"", "metadata": {}, "name": "", "recipe": {}, "segments": b""}
WIDE_TASKS = [EMPTY_TASK | {"name": f"{number:04}" + "\u00e9" * 510} for number in range(1025)]
NESTED: Any = 0
for _ in range(8):
    NESTED = [NESTED]

CASES: list[tuple[str, str, Draft]] = [
    ("TSW-101", "a wrong magic", in_frame(magic=b"\x89TSX\r\n\x1a\n")),
    ("TSW-102", "major 2, whatever the rest says", in_frame(major=2, crc32c=0, required=1)),
    ("TSW-103", "a required feature", in_frame(required=1 << 40, file_length=1)),
    ("TSW-104", "the prologue's CRC", in_frame(crc32c=0, required=1)),
    ("TSW-105", "file_length", in_frame(file_length=999)),
    ("TSW-106", "encoding 2", in_frame(index_encoding=2, trailer_index_encoding=2)),
    ("TSW-107", "in the prologue", in_frame(reserved=b"\0\0\1")),
    ("TSW-107", "in the trailer", in_frame(trailer_reserved=b"\0\0\1")),
    ("TSW-107", "in an entry", with_entry(0, vector=1)),
    ("TSW-107", "in a segment", with_segment(0, 0, reserved=1)),
    ("TSW-108", "no index bytes", in_frame(index_decoded_length=0)),
    ("TSW-108", "too large", in_frame(index_decoded_length=(1 << 26) + 1)),
    ("TSW-108", "another length", in_frame(index_decoded_length=600, trailer_index_decoded_length=600)),
    ("TSW-201", "end magic", in_frame(trailer_end_magic=b"WST\0")),
    ("TSW-202", "the trailer's CRC", in_frame(trailer_crc32c=1)),
    ("TSW-203", "behind the trailer", in_frame(index_offset=1 << 63)),
    ("TSW-203", "within the prologue", in_frame(index_offset=60)),
    ("TSW-204", "index digest", in_frame(trailer_sha256=bytes(32))),
    ("TSW-205", "another offset", in_frame(trailer_index_offset=64)),
    ("TSW-205", "another encoding", in_frame(trailer_index_encoding=1)),
    *[
        ("TSW-301", name, at_top("metadata", Raw(bytes.fromhex(code))))
        for name, code in {
            "nil": "C0",
            "int8 of 5": "D005",
            "false": "C2",
            "true": "C3",
            "float": "CA00000000",
            "double": "CB0000000000000000",
            "negative fixint": "FF",
            "int8": "D0FF",
            "int64": "D3FFFFFFFFFFFFFFFF",
            "ext": "C7010100",
            "timestamp": "D6FF00000000",
        }.items()
    ],
    *[
        ("TSW-302", name, at_top("metadata", Raw(bytes.fromhex(code))))
        for name, code in {
            "uint8": "CC7F",
            "uint16": "CD00FF",
            "uint32": "CE0000FFFF",
            "uint64": "CF00000000FFFFFFFF",
            "never used": "C1",
            "str8": "D900",
            "str16": "DA0001",
            "str32": "DB00000000",
            "bin16": "C50001",
            "bin32": "C600000001",
            "array16": "DC0001",
            "array32": "DD00000001",
            "map16": "DE000F",
            "map32": "DF00000010",
        }.items()
    ],
    ("TSW-302", "a cut document", document(lambda index: index.__setitem__("writer", Raw(b"\xa5ab")))),
    ("TSW-303", "a key that is none", at_top("metadata", Raw(b"\x81\x01\xa0"))),
    ("TSW-303", "keys in another order", at_top("metadata", {"b": "", "a": ""})),
    ("TSW-303", "a key twice", at_top("metadata", Raw(b"\x82\xa1a\xa0\xa1a\xa0"))),
    ("TSW-304", "broken UTF-8", at_top("metadata", Raw(b"\x81\xa1a\xa1\xff"))),
    ("TSW-304", "a surrogate", at_top("writer", "\ud800")),
    ("TSW-304", "an overlong form", at_top("writer", Raw(b"\xa2\xc0\x80"))),
    ("TSW-305", "4,097 keys", at_top("metadata", WIDE | {"l": ""})),
    ("TSW-305", "4,097 members", at_top("tasks", [0] * 4097)),
    ("TSW-305", "nine levels", at_top("metadata", NESTED)),
    ("TSW-305", "262,145 nodes", at_top("tasks", [WIDE] * 64)),
    ("TSW-306", "a byte behind", Draft(tail=b"\0")),
    ("TSW-307", "a missing key", document(lambda index: index.pop("writer"))),
    ("TSW-307", "a key too many", at_top("zzz", 1)),
    ("TSW-307", "a type", at_top("writer", 1)),
    ("TSW-307", "metadata of numbers", at_top("metadata", {"a": 1})),
    ("TSW-307", "aliases of strings", in_base("aliases", {"d": "a"})),
    ("TSW-307", "31 bytes of content_id", document(lambda index: first(index, "content_id", bytes(31)))),
    ("TSW-307", "a task that is none", at_top("tasks", [1])),
    ("TSW-308", "a profile", at_top("profile", "archived")),
    ("TSW-310", "tensors", in_base("tensors", bytes(47))),
    ("TSW-310", "entries", document(lambda index: index["tasks"][0].__setitem__("entries", bytes(55)))),
    ("TSW-310", "segments", document(lambda index: index["tasks"][0].__setitem__("segments", bytes(25)))),
    ("TSW-401", "names", in_base("names", b"abcd")),
    ("TSW-401", "dims", in_base("dims", bytes(24))),
    *[
        ("TSW-402", repr(name)[:30], of_tensors(tensor(name, 12, 1)))
        for name in (
            "",
            "x" * 1025,
            b"\xff",
            "a\n",
            "\x7f",
            "\u2028",
            "\u2029",
            "\u202e",
            "\u061c",
            "e\u0301",
            "\u212b",
        )
    ],
    ("TSW-305", "4 MiB of str", at_top("metadata", {"a": "x" * (1 << 22)})),
    (
        "TSW-403",
        "1 MiB of names that are not ASCII",
        document(lambda index: index.update(tasks=WIDE_TASKS, extra=EMPTY_LIST)),
    ),
    ("TSW-403", "17 dimensions", of_tensors(tensor("a", 12, *[1] * 17))),
    ("TSW-403", "a dimension", of_tensors(tensor("a", 12, BIG + 1, 0))),
    ("TSW-403", "elements", of_tensors(tensor("a", 12, 1 << 24, (1 << 24) + 1))),
    ("TSW-404", "dtype 0", of_tensors(tensor("a", 0, 1))),
    ("TSW-404", "dtype 21", of_tensors(tensor("a", 21, 1))),
    ("TSW-404", "half a byte", of_tensors(tensor("a", 17, 3))),
    ("TSW-404", "six bits", of_tensors(tensor("a", 18, 2))),
    ("TSW-404", "of an entry", with_entry(1, dtype=33)),
    ("TSW-405", "a name twice", of_tensors(tensor("a", 12, 1), tensor("a", 12, 1))),
    ("TSW-405", "order", of_tensors(tensor("b", 12, 1), tensor("a", 12, 1))),
    ("TSW-405", "extra", of_extra(tensor("x", 7, 3), tensor("x", 7, 2))),
    ("TSW-406", "tensor flags", of_tensors(tensor("a", 12, 1, flags=4))),
    ("TSW-406", "an absent sha256", of_tensors(tensor("a", 12, 1, sha256=bytes(31) + b"\1"))),
    ("TSW-406", "an absent sample", of_tensors(tensor("a", 12, 1, sampled=bytes(7) + b"\1"))),
    ("TSW-406", "a digest of extra", of_extra(tensor("x", 7, 2, flags=1))),
    ("TSW-406", "entry flags", with_entry(0, flags=14)),
    ("TSW-406", "an absent digest", with_entry(0, sha256=b"\1" * 32)),
    ("TSW-407", "an improper alias", Draft(aliases={"d\n": 0})),
    ("TSW-407", "a tensor's name", Draft(aliases={"b": 0})),
    ("TSW-407", "a number of extra", Draft(aliases={"d": 3})),
    ("TSW-408", "an unused record", Draft(extra=[tensor("x", 7, 2), tensor("y", 7, 2)])),
    ("TSW-307", "a key of shared", document_of_shared(lambda shared: shared.pop("roles"))),
    ("TSW-307", "a key too many in shared", in_shared("zzz", 1)),
    ("TSW-307", "shared is no map", document_of_all(lambda index: index.__setitem__("shared", []))),
    ("TSW-310", "shared tensors", in_shared("tensors", bytes(47))),
    ("TSW-310", "shared segments", in_shared("segments", bytes(25))),
    ("TSW-401", "shared names", in_shared("names", b"aa")),
    ("TSW-402", "a vector's name", with_vector("a\n")),
    ("TSW-404", "a vector's dtype", with_vector(dtype=21)),
    ("TSW-405", "vectors by SHA-256", with_two(OTHER, VECTOR, 0, 1)),
    ("TSW-405", "a vector twice", with_two(VECTOR, VECTOR, 0, 1)),
    ("TSW-405", "vectors by dtype", with_two(vector("a", 12, 2, 5, payload=bytes(40)), VECTOR, 0, 1)),
    ("TSW-406", "a vector without digest", with_vector(flags=0, sha256=bytes(32))),
    ("TSW-406", "a vector with a sample", with_vector(flags=3)),
    ("TSW-406", "a vector's flags", with_vector(flags=5)),
    ("TSW-409", "roles too short", in_shared("roles", b"")),
    ("TSW-409", "roles too long", in_shared("roles", b"\1\1")),
    ("TSW-409", "role 0", with_vector(role=0)),
    ("TSW-409", "role 2", with_vector(role=2)),
    ("TSW-409", "a vector of nothing", with_vector("b")),
    ("TSW-409", "a vector of an alias", with_vector("d")),
    ("TSW-409", "a vector of integers", with_vector("c", shape=(3,))),
    ("TSW-409", "an integer vector", with_vector(dtype=5)),
    ("TSW-409", "a vector's shape", with_vector(shape=(10,))),
    ("TSW-410", "nothing shared", document_of_all(nothing_shared)),
    ("TSW-410", "an unused vector", with_two(VECTOR, OTHER, 0)),
    ("TSW-410", "vectors without masks", Draft(shared=[VECTOR])),
    *[("TSW-307", f"no router.{key}", routed_without(key)) for key in ROUTER],
    ("TSW-307", "a key too many in router", routed(zzz="")),
    ("TSW-307", "router is no map", document(lambda index: first(index, "router", []))),
    ("TSW-307", "k is no number", routed(k="3")),
    ("TSW-307", "a metric that is no str", routed(metric=1)),
    ("TSW-307", "an extractor that is no str", routed(extractor=b"")),
    ("TSW-406", "features without digest", routed(features("t", 3, 2, flags=0, sha256=bytes(32)))),
    ("TSW-409", "role 4", routed(features("t", 3, 2, role=4))),
    ("TSW-409", "features of no task", routed(features("a", 3, 2))),
    ("TSW-409", "features of an alias", routed(features("d", 3, 2))),
    ("TSW-409", "features twice", routed(features("t", 2, 2), features("t", 3, 2))),
    ("TSW-409", "features of BF16", routed(features("t", 3, 2, dtype=11, payload=bytes(12)))),
    ("TSW-409", "features of F64", routed(features("t", 3, 2, dtype=13, payload=bytes(48)))),
    ("TSW-409", "features of one dimension", routed(features("t", 6))),
    ("TSW-409", "features of three dimensions", routed(features("t", 3, 2, 1))),
    ("TSW-409", "no sample", routed(features("t", 0, 2))),
    ("TSW-409", "samples of nothing", routed(features("t", 3, 0))),
    ("TSW-409", "samples of 2 and of 3 numbers", routed_again(features("t", 3, 2), features("u", 2, 3))),
    ("TSW-411", "a router without features", Draft(router=ROUTER)),
    ("TSW-411", "a router beside vectors", with_masked_router()),
    ("TSW-411", "features without a router", Draft(shared=[features("t", 3, 2)])),
    ("TSW-411", "no neighbour", routed(k=0)),
    ("TSW-411", "too many neighbours", routed(k=(1 << 20) + 1)),
    ("TSW-411", "a metric", routed(metric="Cosine")),
    ("TSW-507", "features as a vector", mask_over_features()),
    ("TSW-804", "features", routed(features("t", 3, 2, sha256=b"\1" * 32))),
    ("TSW-307", "no rows", tabled_of(lambda index: index["coefficients"]["k"].pop("rows"))),
    ("TSW-307", "no columns", tabled_of(lambda index: index["coefficients"]["k"].pop("tasks"))),
    ("TSW-307", "a key too many in a table", tabled(zzz=1)),
    ("TSW-307", "tables are no map", tabled_of(lambda index: index.__setitem__("coefficients", []))),
    ("TSW-307", "a table is no map", tabled_of(lambda index: index["coefficients"].__setitem__("k", []))),
    ("TSW-307", "rows are no bin", tabled(rows=[0, 2])),
    ("TSW-307", "columns are no array", tabled(tasks="ut")),
    ("TSW-307", "a column that is no str", tabled(tasks=["u", b"t"])),
    ("TSW-307", "a clamp that is no bin", tabled(clamp=[0, 1])),
    ("TSW-406", "coefficients without digest", tabled(coefficients("k", (1.0, 1.0), flags=0, sha256=bytes(32)))),
    ("TSW-409", "coefficients of F16", tabled(vector("k", 10, 2, 2, payload=bytes(8), role=3))),
    ("TSW-409", "coefficients of one dimension", tabled(vector("k", 12, 4, payload=bytes(16), role=3))),
    ("TSW-409", "coefficients of three dimensions", tabled(vector("k", 12, 2, 2, 1, payload=bytes(16), role=3))),
    ("TSW-409", "no row", tabled(vector("k", 12, 0, 2, payload=b"", role=3), rows=b"")),
    ("TSW-409", "no column", tabled(vector("k", 12, 2, 0, payload=b"", role=3), tasks=[])),
    ("TSW-409", "a name twice", tabled(coefficients("k", (0.0, 0.0)), coefficients("k", (0.0, 0.0), (0.0, 0.0)))),
    ("TSW-412", "no table", tabled_of(lambda index: index["coefficients"].clear())),
    ("TSW-412", "nothing shared", Draft(tables={"k": table((0,), ["t"])})),
    ("TSW-412", "an array without its table", tabled_of(lambda index: index.pop("coefficients"))),
    ("TSW-412", "a table without its array", two_tables()),
    ("TSW-412", "rows of 4 bytes", tabled(rows=bytes(4))),
    ("TSW-412", "rows of 9 bytes", tabled(rows=bytes(9))),
    ("TSW-412", "a row twice", tabled(rows=struct.pack("<2I", 2, 2))),
    ("TSW-412", "rows descend", tabled(rows=struct.pack("<2I", 2, 0))),
    ("TSW-412", "a row of extra", tabled(rows=struct.pack("<2I", 0, 3))),
    ("TSW-412", "one column", tabled(tasks=["t"])),
    ("TSW-412", "three columns", tabled(tasks=["t", "u", "v"])),
    ("TSW-412", "a column of no task", tabled(tasks=["t", "a"])),
    ("TSW-412", "a column twice", tabled(tasks=["t", "t"])),
    *[
        ("TSW-412", f"clamp {name}", tabled(clamp=struct.pack(f"<{len(bounds)}f", *bounds)))
        for name, bounds in {
            "of nothing": (),
            "of one": (0.0,),
            "of three": (0.0, 1.0, 1.0),
            "NaN": (0.0, NAN),
            "-inf": (-INFINITY, 0.0),
            "inf": (0.0, INFINITY),
            "reversed": (1.0, 0.5),
        }.items()
    ],
    ("TSW-507", "coefficients as a vector", mask_over_coefficients()),
    ("TSW-705", "a NaN in a table", tabled(coefficients("k", (0.5, 1.0), (NAN, 3.0)))),
    ("TSW-705", "infinity within a clamp", tabled(coefficients("k", (0.5, 1.0), (0.0, -INFINITY)))),
    ("TSW-802", "columns", signed_tables(lambda given: given["tasks"].reverse())),
    ("TSW-802", "rows", signed_tables(lambda given: given.__setitem__("rows", bytes(4)))),
    ("TSW-802", "no clamp", signed_tables(lambda given: given.pop("clamp"))),
    ("TSW-802", "a clamp", signed_tables(lambda given: given.__setitem__("clamp", CLAMP[4:] * 2))),
    ("TSW-804", "coefficients", tabled(coefficients("k", (0.5, 1.0), (0.0, 0.0), sha256=b"\1" * 32))),
    ("TSW-802", "k", signed(lambda index: index["router"].__setitem__("k", 4))),
    ("TSW-802", "texts", signed(lambda index: index["router"].update(extractor="", preprocessing="é"))),
    ("TSW-507", "no such vector", with_masked(vector=1)),
    ("TSW-507", "nothing shared", without_shared()),
    ("TSW-507", "an integer tensor", with_masked(tensor=1, vector=0)),
    ("TSW-507", "an integer dtype", with_masked(dtype=7)),
    ("TSW-507", "infinite", with_masked(knob=struct.pack("<f", -float("inf")))),
    ("TSW-507", "factor_dtype", with_masked(factor_dtype=1)),
    ("TSW-507", "row factors", with_masked(flags=2, factor_dtype=1)),
    ("TSW-507", "active", with_masked(active=3)),
    ("TSW-507", "active beyond", with_masked(active=11)),
    ("TSW-601", "signs of a masked entry", with_masked_segments(*masked(0, 12)["segments"], segment(2, 0, 0, b""))),
    ("TSW-601", "no mask", with_masked_segments()),
    ("TSW-601", "a vector's role", with_vector_segment(role=1)),
    ("TSW-601", "a vector without data", in_shared("segments", b"")),
    ("TSW-602", "a vector's count", with_vector_segment(count=9)),
    ("TSW-603", "a vector's place", with_vector_segment(offset=66)),
    ("TSW-606", "a vector's codec", with_vector_segment(codec=2)),
    ("TSW-701", "a vector", with_vector_segment(crc32c=1)),
    ("TSW-706", "a vector", with_vector_segment(payload=bytes(19))),
    ("TSW-801", "a masked entry", with_masked(sha256=b"\1" * 32, flags=1)),
    ("TSW-804", "a vector", with_vector(sha256=b"\1" * 32)),
    ("TSW-501", "a name", Draft(tasks=[task("", []), *Draft().tasks])),
    ("TSW-501", "a name twice", Draft(tasks=[task("t", []), *Draft().tasks])),
    ("TSW-502", "descending", with_entry(1, tensor=0)),
    ("TSW-502", "beyond", with_entry(3, tensor=4)),
    ("TSW-502", "a name twice", of_extra(tensor("b", 7, 2))),
    ("TSW-503", "0", with_entry(0, kind=0)),
    ("TSW-503", "5", with_entry(0, kind=5)),
    ("TSW-504", "infinite", with_entry(0, knob=struct.pack("<f", float("inf")))),
    ("TSW-504", "dtype", with_entry(0, dtype=7)),
    ("TSW-504", "the tensor's dtype", with_entry(2, kind=1, dtype=12)),
    ("TSW-504", "of extra", with_entry(3, kind=1, dtype=12)),
    ("TSW-504", "factor dtype", with_entry(0, factor_dtype=4)),
    ("TSW-504", "factor dtype without factors", with_entry(0, flags=0)),
    ("TSW-504", "factors without their dtype", with_entry(0, factor_dtype=0)),
    ("TSW-504", "factors of one dimension", with_entry(1, kind=1, flags=2, factor_dtype=1)),
    ("TSW-504", "active", with_entry(0, active=5)),
    ("TSW-504", "active beyond", with_entry(0, active=11)),
    ("TSW-505", "dtype", with_entry(1, dtype=11)),
    ("TSW-505", "a knob of -0", with_entry(1, knob=struct.pack("<f", -0.0))),
    ("TSW-505", "active", with_entry(1, active=1)),
    ("TSW-505", "a factor flag", with_entry(1, flags=4)),
    ("TSW-506", "of extra", with_entry(3, kind=4)),
    ("TSW-506", "dtype", with_entry(2, dtype=3)),
    ("TSW-506", "factor_dtype", with_entry(2, factor_dtype=1)),
    ("TSW-601", "too few", document(lambda index: index["tasks"][0].__setitem__("segments", bytes(24)))),
    ("TSW-601", "too many", with_entry(2, segments=[segment(5, 16, 3, b"abc")])),
    ("TSW-601", "role", with_segment(0, 0, role=4)),
    ("TSW-602", "mask", with_segment(0, 2, count=11)),
    ("TSW-602", "signs", with_segment(0, 3, count=5)),
    ("TSW-602", "factors", with_segment(0, 0, count=1)),
    ("TSW-602", "data", with_segment(1, 0, count=3)),
    ("TSW-603", "a hole", with_segment(0, 1, offset=69)),
    ("TSW-603", "overlap", with_segment(0, 1, offset=67)),
    ("TSW-603", "a longer one", with_segment(0, 0, length=5)),
    ("TSW-604", "a hole", Draft(gap=b"\0")),
    ("TSW-604", "past the index", with_segment(3, 0, length=9)),
    ("TSW-605", "an encoded plane", mapped_with_an_encoded_plane()),
    ("TSW-605", "encoded data", mapped_with_encoded_data()),
    ("TSW-606", "unknown", with_segment(0, 2, codec=6)),
    ("TSW-606", "of data", with_segment(0, 2, codec=16)),
    ("TSW-606", "of planes", with_segment(1, 0, codec=2)),
    ("TSW-606", "parameter", with_segment(0, 2, parameter=1)),
    ("TSW-606", "k 21", with_mask(5, b"\x19\x02", parameter=21)),
    ("TSW-606", "no ones", with_mask(5, b"", count=0)),
    ("TSW-701", "a segment", with_segment(0, 1, crc32c=1)),
    ("TSW-702", "before a segment", mapped(padding=b"\1")),
    ("TSW-703", "bitmap", with_segment(0, 2, payload=b"\x19\x06")),
    ("TSW-703", "low parts", with_mask(5, b"\x28\x07", parameter=1, count=3)),
    ("TSW-704", "bitmap", with_segment(0, 2, payload=b"\x18\x02")),
    ("TSW-704", "zeros", with_mask(0, b"")),
    ("TSW-704", "ones", with_mask(1, b"", count=9)),
    ("TSW-705", "infinity", with_segment(0, 0, payload=struct.pack("<2e", 1.0, float("inf")))),
    ("TSW-706", "bitmap", with_segment(0, 2, payload=b"\x19\x02\0")),
    ("TSW-706", "zeros", with_segment(0, 3, codec=0, payload=b"\0")),
    ("TSW-706", "raw", with_segment(1, 0, payload=bytes(7))),
    ("TSW-706", "no low parts", with_mask(4, b"", parameter=3)),
    ("TSW-706", "too few gaps", with_mask(4, frame(b"\0\2\0"))),
    ("TSW-706", "too many gap bytes", with_mask(4, frame(b"\0\2\0\xff\xff\4"))),
    ("TSW-706", "a gap too many", with_mask(4, frame(b"\0\0\0\0\0"))),
    ("TSW-706", "too far", with_mask(4, frame(b"\0\2\0\5"))),
    ("TSW-706", "low parts and no frame", with_mask(4, b"\x08", parameter=2)),
    ("TSW-706", "rice, one too many", with_mask(5, b"\x08\x37", parameter=2)),
    ("TSW-706", "rice, too far", with_mask(5, b"\x19\x04")),
    ("TSW-706", "rice, too few", with_mask(5, b"\x19\x00")),
    ("TSW-706", "rice, a byte too many", with_mask(5, b"\x19\x02\x00")),
    ("TSW-707", "no frame", with_segment(1, 0, codec=17, payload=bytes(8))),
    ("TSW-707", "another size", with_segment(1, 0, codec=17, payload=frame(bytes(9)))),
    (
        "TSW-707",
        "a checksum",
        with_segment(1, 0, codec=17, payload=zstandard.ZstdCompressor(write_checksum=True).compress(bytes(8))),
    ),
    ("TSW-707", "a byte behind", with_segment(1, 0, codec=17, payload=frame(bytes(8)) + b"\0")),
    ("TSW-707", "two frames", with_segment(1, 0, codec=17, payload=frame(bytes(8)) + frame(b""))),
    ("TSW-707", "no byte", with_mask(3, b"", count=4)),
    ("TSW-707", "a frame cut", with_mask(3, frame(b"\x19\x02")[:-1])),
    ("TSW-801", "an entry", with_entry(0, sha256=b"\1" * 32, flags=7)),
    ("TSW-803", "content_id", document(lambda index: first(index, "content_id", bytes(32)))),
]


def broken(data: bytes) -> str:
    with pytest.raises(BrokenError) as caught:
        read(data)
    assert "\n" not in str(caught.value)
    return caught.value.rule


@pytest.mark.parametrize(("rule", "what", "draft"), CASES, ids=[f"{rule} {what}" for rule, what, _ in CASES])
def test_a_file_that_breaks_one_rule(rule, what, draft):
    assert broken(draft.build()) == rule


def test_the_drafts_are_valid():
    for draft in (
        Draft(),
        mapped(),
        with_masked(),
        with_two(VECTOR, OTHER, 0, 1),
        routed(),
        routed(k=1, metric="euclidean"),
        routed(features("t", 1, 1, dtype=10), k=1 << 20),
        routed_again(features("t", 3, 2), features("u", 1, 2, dtype=10)),
        signed(lambda index: None),
        of_tensors(tensor("é", 12, BIG), tensor("日", 17, 3, 0)),
    ):
        read(draft.build())


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.name)
def test_golden_files_are_accepted(path):
    described = describe(read(path.read_bytes()))
    assert described["version"] == "1.0"


def test_rules_that_no_draft_breaks():
    data = Draft().build()
    assert broken(data[:127]) == "TSW-100"
    assert broken(b"") == "TSW-100"
    assert broken(b"PK") == "TSW-101"
    assert broken(data[:-1]) == "TSW-105"
    smallest = (Path(__file__).parents[1] / "golden" / "smallest.tsw").read_bytes()
    index = bytearray(smallest[67:-64])
    index[0xBA - 67] ^= 1
    assert broken(seal(bytes(index), smallest[64:67])) == "TSW-802"


def test_every_rule_on_files_is_broken_once():
    lines = SPEC.read_text(encoding="utf-8").splitlines()
    listed = {line[2:9] for line in lines if line.startswith("| TSW-") and not line.startswith("| TSW-9")}
    assert listed == {rule for rule, _, _ in CASES} | {"TSW-100"}


def test_every_cut_and_every_flipped_byte_is_found():
    data = Draft().build()
    for length in range(len(data)):
        broken(data[:length])
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 0x10
        broken(bytes(flipped))


ENCODINGS = {
    "bitmap": (2, 0, b"\x19\x02"),
    "bitmap_zstd": (3, 0, frame(b"\x19\x02")),
    "gaps_zstd 0": (4, 0, bytes.fromhex("28B52FFD2004210000 00020004")),
    "gaps_zstd 2": (4, 2, bytes.fromhex("08 28B52FFD2004210000 00000001")),
    "gaps_zstd 20": (4, 20, bytes.fromhex("000020000000004000 00 28B52FFD2004210000 00000000")),
    "rice 2": (5, 2, b"\x08\x17"),
    "rice 0": (5, 0, b"\x19\x02"),
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_worked_examples_of_codecs(name):
    codec, parameter, payload = ENCODINGS[name]
    file = read(with_mask(codec, payload, parameter).build())
    assert file.content(file.tasks[0].entries[0].masks[0]) == b"\x19\x02"


def test_a_long_gap():
    payload = bytes.fromhex("28B52FFD2005290000FF00FFFFBE")
    parts = [segment(1, 4, 2, payload), segment(2, 0, 2, b"")]
    parts[1]["count"] = 0
    draft = of_tensors(tensor("a", 12, 1000))
    draft.tasks = [task("t", [entry(0, 1, 12, parts, active=2)])]
    file = read(draft.build())
    assert file.content(file.tasks[0].entries[0].masks[0]) == ((1 << 255) + (1 << 956)).to_bytes(125, "little")


def test_chunks_of_a_plane():
    parts = [segment(1, 1, CHUNK, b""), segment(1, 2, 1, b"\1"), segment(2, 0, 0, b""), segment(2, 1, 1, b"")]
    parts[2]["count"] = 0
    draft = of_tensors(tensor("a", 12, CHUNK + 1))
    draft.tasks = [task("t", [entry(0, 1, 12, parts, active=CHUNK + 1)])]
    described = describe(read(draft.build()))["tasks"][0]["entries"][0]
    assert described["mask"]["bytes"] == CHUNK // 8 + 1
    assert described["signs"][1] == {"hex": "01"}


def test_an_encoded_index():
    index = pack({"base": {"aliases": {}, "dims": b"", "names": b"", "tensors": b""}}
                 | {"extra": {"dims": b"", "names": b"", "tensors": b""}, "metadata": {"a": "a" * 500}}
                 | {"profile": "mapped", "tasks": [], "writer": ""})  # fmt: skip
    stored = frame(index)
    assert read(seal(index, b"", index_encoding=1, stored=stored, trailer_index_length=len(stored))).writer == ""
    other = stored[:-1] + b"\xff"
    for wrong in (other, frame(index + b"\0"), stored + bytes(10)):
        assert broken(seal(index, b"", index_encoding=1, stored=wrong)) == "TSW-707"
    assert broken(seal(index, b"", index_encoding=1, stored=bytes(len(index) + 1025 + len(index) // 256))) == "TSW-108"


def newer(draft: Draft) -> bytes:
    draft.frame |= {"minor": 1}
    return draft.build()


def test_a_newer_minor_version_may_add():
    added = at_top("zzz", [{"any": [1]}])
    for data in (
        newer(added),
        newer(in_frame(reserved=b"\1\2\3", trailer_reserved=b"\4\5\6")),
        newer(with_entry(0, vector=7, flags=0xF6)),
        newer(with_vector(flags=0xFD)),
        newer(in_shared("zzz", [1])),
        newer(routed(zzz=[1])),
        newer(tabled(zzz=[1])),
        newer(with_segment(0, 0, reserved=9)),
        newer(of_tensors(tensor("a", 12, 1, flags=0xF0))),
    ):
        assert describe(read(data))["version"] == "1.1"


@pytest.mark.parametrize(
    ("rule", "draft"),
    [
        ("TSW-103", in_frame(required=2)),
        ("TSW-106", in_frame(index_encoding=3)),
        ("TSW-301", at_top("zzz", Raw(b"\xc0"))),
        ("TSW-303", at_top("aaa", 1)),
        ("TSW-307", document(lambda index: index.pop("writer"))),
        ("TSW-308", at_top("profile", "tape")),
        ("TSW-404", of_tensors(tensor("a", 99, 1))),
        ("TSW-503", with_entry(0, kind=5)),
        ("TSW-409", with_vector(role=4)),
        ("TSW-412", two_tables()),
        ("TSW-412", tabled(rows=bytes(16))),
        ("TSW-411", routed(metric="manhattan")),
        ("TSW-411", routed(k=0)),
        ("TSW-507", with_masked(vector=1)),
        ("TSW-601", with_segment(0, 0, role=9)),
        ("TSW-606", with_segment(0, 2, codec=7)),
    ],
)
def test_a_newer_minor_version_may_not(rule, draft):
    assert broken(newer(draft)) == rule


def test_what_is_said_of_a_router():
    described = describe(read(routed_again(features("t", 3, 2), features("u", 1, 2)).build()))
    shared = described["shared"]
    assert [(one["name"], one["role"], one["shape"]) for one in shared] == [
        ("t", "features", [3, 2]),
        ("u", "features", [1, 2]),
    ]
    assert described["router"] == ROUTER | {"features": {one["name"]: one["sha256"] for one in shared}}
    assert "router" not in describe(read(Draft().build()))


def test_what_is_said_of_tables():
    described = describe(read(two_tables(coefficients("l", (-1.0,))).build()))
    shared = described["shared"]
    assert [(one["name"], one["role"], one["shape"]) for one in shared] == [
        ("k", "coefficients", [2, 2]),
        ("l", "coefficients", [1, 1]),
    ]
    bounds = [{"f32": "bf000000"}, {"f32": "3f800000"}]
    assert described["coefficients"] == {
        "k": {"rows": ["a", "c"], "tasks": ["u", "t"], "clamp": bounds, "sha256": shared[0]["sha256"]},
        "l": {"rows": ["b"], "tasks": ["t"], "clamp": None, "sha256": shared[1]["sha256"]},
    }
    assert "coefficients" not in describe(read(Draft().build()))


def test_what_a_content_id_covers_of_tables():
    """Written out here once more, from section 11.4."""
    file = read(signed_tables(lambda given: None).build())
    sha256 = [hashlib.sha256(data).digest() for data in (struct.pack("<2f", 0.5, 1.0), bytes(24))]
    zero = bytes(32)  # the digest that `signed_tables` gives its tensors
    covered = (
        b"TSW1-content\0" + struct.pack("<I", 2) + b"".join(b"\1\0" + name + b"\x0c\0" + zero for name in (b"a", b"b"))
    )
    covered += struct.pack("<II", 0, 2) + b"\1\0t" + bytes(4) + b"\1\0u" + bytes(4)
    covered += struct.pack("<I", 1) + b"\1\0t" + b"\x0c\2" + struct.pack("<2Q", 3, 2) + sha256[1] + struct.pack("<I", 3)
    covered += b"\6\0\0\0cosine" + b"\2\0\0\0\xc3\xa9" + bytes(4)
    covered += b"TSW1-coefficients\0" + struct.pack("<I", 1) + b"\1\0k" + struct.pack("<II", 1, 2)
    covered += b"\1\0b" + b"\1\0u" + b"\1\0t" + b"\1" + CLAMP + sha256[0]
    assert file.content_id == hashlib.sha256(covered).digest()


def test_values_at_their_limits():
    bounds = (struct.pack("<2f", 0.0, -0.0), struct.pack("<2f", 2.0, 2.0), struct.pack("<2I", 0xFF7FFFFF, 0x7F7FFFFF))
    for clamp in bounds:
        read(tabled(clamp=clamp).build())
    read(at_top("metadata", WIDE).build())
    read(of_tensors(tensor("x" * 1024, 12, *[1] * 16), tensor("y", 12, BIG, 1)).build())
    assert len(ROWS) + len(COLUMNS) == 14
