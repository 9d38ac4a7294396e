"""Bundle, extract and repack: entries go from file to file, and their content does not change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from container_files import Edited, content, edit, make, make_tiny, make_wide

import tswitch_format as tsw
from tswitch_format.errors import BaseMismatchError, FormatError, OptionError, UnknownNameError

TASKS = ("one", "two", "three")


@pytest.fixture(scope="module", params=["archive", "mapped"])
def experts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files of three tasks of one base."""
    folder = tmp_path_factory.mktemp("experts")
    return [
        make(folder / f"{task}.tsw", seed, task=task, profile=request.param, base_id="a/b", metadata={"k": "v"})
        for seed, task in enumerate(TASKS)
    ]


def test_a_bundle_has_all_tasks_and_gives_each_back_byte_for_byte(
    experts: list[Path], out: Path, tmp_path: Path
) -> None:
    assert tsw.bundle(experts, out) == out
    assert tsw.validate(out).ok
    with tsw.open(out) as file:
        assert file.tasks == list(TASKS)
        assert (file.metadata, file.base.id) == ({"k": "v"}, "a/b")
    everything = content(out)
    for path, task in zip(experts, TASKS, strict=True):
        again = tsw.extract(out, task, tmp_path / f"{task}.tsw")
        assert again.read_bytes() == path.read_bytes()
        assert {key: value for key, value in everything.items() if key[0] == task} == content(path)


def test_a_bundle_of_bundles_is_the_bundle_of_all(experts: list[Path], tmp_path: Path) -> None:
    whole = tsw.bundle(experts, tmp_path / "whole.tsw")
    some = tsw.bundle(experts[:2], tmp_path / "some.tsw")
    assert tsw.bundle([some, experts[2]], tmp_path / "again.tsw").read_bytes() == whole.read_bytes()


def test_the_content_id_does_not_depend_on_the_order_of_tasks(experts: list[Path], tmp_path: Path) -> None:
    ids = set()
    for number, order in enumerate((experts, experts[::-1])):
        with tsw.open(tsw.bundle(order, tmp_path / f"{number}.tsw")) as file:
            ids.add(file.content_id)
    assert len(ids) == 1
    assert None not in ids


@pytest.mark.parametrize("threads", [1, 3])
def test_repacking_there_and_back_gives_the_same_bytes(threads: int, tmp_path: Path) -> None:
    for number, source in enumerate(
        (make(tmp_path / "a.tsw"), make_wide(tmp_path / "b.tsw"), make_tiny(tmp_path / "c.tsw"))
    ):
        mapped = tsw.repack(source, tmp_path / f"{number}m.tsw", profile="mapped", threads=threads)
        back = tsw.repack(mapped, tmp_path / f"{number}a.tsw", profile="archive", threads=threads)
        again = tsw.repack(back, tmp_path / f"{number}n.tsw", profile="mapped", threads=threads)
        assert back.read_bytes() == source.read_bytes()
        assert again.read_bytes() == mapped.read_bytes()
        assert tsw.validate(mapped).ok
        assert content(mapped) == content(source)
        with tsw.open(mapped) as m, tsw.open(source) as a:
            assert m.content_id == a.content_id
            assert (m.profile, a.profile) == ("mapped", "archive")


def test_a_mapped_file_is_packed_as_it_is_repacked(tmp_path: Path) -> None:
    packed = make(tmp_path / "packed.tsw", profile="mapped")
    repacked = tsw.repack(make(tmp_path / "archive.tsw"), tmp_path / "repacked.tsw", profile="mapped")
    assert packed.read_bytes() == repacked.read_bytes()


@pytest.mark.parametrize("knob_per", ["tensor", "row", "row-col"])
@pytest.mark.parametrize("knob_dtype", ["u8", "f16", "f32"])
def test_factors_of_every_type_are_carried(knob_per: str, knob_dtype: str, tmp_path: Path) -> None:
    source = make(tmp_path / "a.tsw", knob_per=knob_per, knob_dtype=knob_dtype)
    mapped = tsw.repack(source, tmp_path / "m.tsw", profile="mapped")
    assert content(mapped) == content(source)
    assert tsw.repack(mapped, tmp_path / "b.tsw", profile="archive").read_bytes() == source.read_bytes()


def test_files_of_other_bases_are_not_bundled(tmp_path: Path, out: Path) -> None:
    ours = make(tmp_path / "ours.tsw", task="one")
    theirs = make(tmp_path / "theirs.tsw", task="two", base_seed=8)
    with pytest.raises(BaseMismatchError, match=r"wrong base: tensor 'a\.tied'") as caught:
        tsw.bundle([ours, theirs], out)
    assert caught.value.tensor == "a.tied"
    assert str(theirs) in str(caught.value)
    assert "a bundle holds tasks of one base" in str(caught.value)
    assert not out.exists()


@pytest.mark.parametrize("side", [0, 1])
def test_a_base_with_a_tensor_or_an_alias_more_is_another(side: int, tmp_path: Path, out: Path) -> None:
    ours = make_tiny(tmp_path / "ours.tsw", task="one")
    theirs = make_tiny(tmp_path / "theirs.tsw", task="two")

    def alias(file: Edited) -> None:
        file.doc["base"]["aliases"] = {"v": 0}
        del file.doc["content_id"]

    edit((ours, theirs)[side], tmp_path / "other.tsw", alias)
    files = [tmp_path / "other.tsw", theirs] if side == 0 else [ours, tmp_path / "other.tsw"]
    with pytest.raises(BaseMismatchError, match="tensor 'v'"):
        tsw.bundle(files, out)
    with pytest.raises(BaseMismatchError):
        tsw.bundle([make(tmp_path / "more.tsw"), theirs][:: 1 - 2 * side], out)


def test_aliases_of_other_tensors_make_another_base(archive: Path, tmp_path: Path, out: Path) -> None:
    def alias(file: Edited) -> None:
        file.doc["base"]["aliases"] = {"a.weight": 1}
        file.doc["tasks"][0]["name"] = "two"
        del file.doc["content_id"]

    other = edit(archive, tmp_path / "other.tsw", alias)
    with pytest.raises(BaseMismatchError, match=r"a\.weight"):
        tsw.bundle([archive, other], out)
    assert not out.exists()


def test_files_of_other_profiles_are_not_bundled(tmp_path: Path, out: Path) -> None:
    files = [make(tmp_path / f"{profile}.tsw", task=profile, profile=profile) for profile in ("archive", "mapped")]
    with pytest.raises(
        OptionError, match=r"expected the profile archive of .* found mapped; bring it there with 'tsw repack"
    ):
        tsw.bundle(files, out)
    assert not out.exists()


def test_a_task_name_comes_once(tiny: Path, out: Path) -> None:
    with pytest.raises(OptionError, match="task 'task': there are two of that name"):
        tsw.bundle([tiny, tiny], out)
    assert not out.exists()


def test_a_bundle_of_nothing_is_refused(out: Path) -> None:
    with pytest.raises(OptionError, match="expected at least one file, found none"):
        tsw.bundle([], out)


def test_an_unknown_task_is_named_with_a_near_one(archive: Path, out: Path) -> None:
    with pytest.raises(UnknownNameError, match="no task named 'once' among 1; did you mean 'one'"):
        tsw.extract(archive, "once", out)
    assert not out.exists()


@pytest.mark.parametrize("how", ["bundle", "extract", "repack"])
def test_a_damaged_segment_is_not_carried_on(how: str, tiny: Path, tmp_path: Path, out: Path) -> None:
    data = bytearray(tiny.read_bytes())
    data[64] ^= 1
    bad = tmp_path / "bad.tsw"
    bad.write_bytes(data)
    with pytest.raises(FormatError, match="TSW-701"):
        {
            "bundle": lambda: tsw.bundle([bad], out),
            "extract": lambda: tsw.extract(bad, "task", out),
            "repack": lambda: tsw.repack(bad, out, profile="mapped"),
        }[how]()
    assert list(tmp_path.iterdir()) == [bad]


def test_files_without_digests_are_carried_without_them(tiny: Path, tmp_path: Path) -> None:
    def strip(file: Edited) -> None:
        del file.doc["content_id"]
        for table_of, keep in ((file.entries, 6), (file.tensors, 0)):
            with table_of() as table:
                table["flags"] &= keep
                table["sha256"] = np.void(bytes(32))
        with file.tensors() as table:
            table["sampled"] = np.void(bytes(8))

    bare = edit(tiny, tmp_path / "bare.tsw", strip)
    for number, made in enumerate(
        (tsw.bundle([bare], tmp_path / "b.tsw"), tsw.repack(bare, tmp_path / "m.tsw", profile="mapped"))
    ):
        assert tsw.validate(made).ok, number
        assert content(made) == content(tiny)
        with tsw.open(made) as file:
            assert file.content_id is None
            assert file.container.entry(0, 0).sha256 is None


def test_progress_counts_entries(archive: Path, out: Path) -> None:
    seen: list[tuple[int, int]] = []
    tsw.repack(archive, out, profile="mapped", threads=2, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(number, 9) for number in range(1, 10)]


def test_a_file_of_a_later_version_is_not_copied_with_losses(archive: Path, out: Path, tmp_path: Path) -> None:
    newer = edit(archive, tmp_path / "newer.tsw", lambda file: file.prologue.update(minor=1))
    for write in (
        lambda: tsw.bundle([newer], out),
        lambda: tsw.extract(newer, "one", out),
        lambda: tsw.repack(newer, out, profile="mapped"),
    ):
        with pytest.raises(
            tsw.OptionError, match=r"newer\.tsw: expected a file of version 1\.0, found 1\.1, of which a copy"
        ):
            write()
    assert not out.exists()
