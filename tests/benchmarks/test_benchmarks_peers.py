"""Every peer gives back what it was given, and a wrong one is found before it is timed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("safetensors")

from benchmarks.peers import MODULES, peers_of  # noqa: E402
from benchmarks.peers.checking import check  # noqa: E402
from benchmarks.peers.examples import Example, every_sign, planes_of, random_planes  # noqa: E402
from benchmarks.peers.peer import Keeps, Peer  # noqa: E402

SHAPES = {"a.weight": (48, 64), "b.weight": (8, 32)}


def learned() -> Example:
    """A difference that is no switch, some planes for it, and a vector that has none."""
    torch.manual_seed(0)
    base = {name: torch.randn(shape) for name, shape in {**SHAPES, "bias": (5,)}.items()}
    expert = {name: tensor + 0.01 * torch.randn(tensor.shape) for name, tensor in base.items()}
    difference = {name: expert[name] - tensor for name, tensor in base.items()}
    planes = random_planes(0.2, shapes=SHAPES).planes
    return Example("learned", base, expert, difference, planes, exact=False, packs=True)


EXAMPLES = {
    "sparse": random_planes(0.01, shapes=SHAPES),
    "half": random_planes(0.5, shapes=SHAPES),
    "learned": learned(),
    "every sign": every_sign(learned()),
}


def applied(peer: Peer, example: Example, path: Path) -> dict[str, torch.Tensor]:
    peer.write(example, path)
    weights = {name: tensor.clone() for name, tensor in example.base.items()}
    peer.apply(path, weights)
    return weights


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
@pytest.mark.parametrize("module", MODULES)
def test_what_a_peer_keeps_comes_back(module: str, example: Example, tmp_path: Path) -> None:
    try:
        peers = peers_of(module)
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    for number, peer in enumerate(peers):
        if peer.takes(example):
            path = tmp_path / str(number)
            check(peer, example, path, applied(peer, example, path))


@pytest.mark.parametrize("keeps", [Keeps.EXPERT, Keeps.DIFFERENCE, Keeps.ROUNDED, Keeps.SWITCH])
def test_one_wrong_element_is_found(keeps: Keeps, tmp_path: Path) -> None:
    example = EXAMPLES["learned"]
    weights = example.switched() if keeps is Keeps.SWITCH else {n: t.clone() for n, t in example.expert.items()}
    peer = replace(peers_of("safetensors_full")[0], keeps=keeps)
    check(peer, example, tmp_path, weights)
    weights["b.weight"][3, 4] += 1e-3
    with pytest.raises(ValueError, match=r"tensor 'b\.weight': expected .* found 1 of 256 elements elsewhere"):
        check(peer, example, tmp_path, weights)


def test_planes_are_read_back_as_they_were_given(tmp_path: Path) -> None:
    example = EXAMPLES["half"]
    example.save_switch(tmp_path / "x.tsw")
    found = planes_of(tmp_path / "x.tsw")
    assert found.keys() == example.planes.keys()
    for name, planes in example.planes.items():
        assert found[name].positions.tolist() == planes.positions.tolist()
        assert found[name].negative.tolist() == planes.negative.tolist()
        assert found[name].knob == planes.knob
