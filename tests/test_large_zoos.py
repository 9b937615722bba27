"""Zoos in files: what is done network by network is what memory gives, interruptions and full disks lose nothing, bad files are named."""

import os
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from time import sleep

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

import geoflow
from geoflow import appending as growing
from geoflow import read_networks, spec_of, write_networks
from geoflow.appending import appending, small_tensors, words_of
from geoflow.stored import Stored, mapped, stored
from geoflow.zoo.files import network_files
from geoflow.zoo.large import add_networks, open_zoo


def build(width: int = 5) -> nn.Module:
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 3))


@pytest.fixture(scope="module")
def spec():
    return spec_of(build(), torch.zeros(2, 4))


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    (tmp_path / "runs").mkdir()
    for number in range(12):
        torch.save(build().state_dict(), tmp_path / "runs" / f"seed{number}.pt")
    return tmp_path / "runs"


def quietly(path, source, spec, **how):
    return add_networks(path, source, spec, progress=False, **how)


# Rows of a file


def test_rows_are_those_of_the_tensor(tmp_path, spec, folder, monkeypatch):
    zoo, thetas = quietly(tmp_path / "zoo.safetensors", folder, spec), read_networks(folder, spec)
    rows = zoo.thetas
    for seen, wanted in ((rows, thetas), (mapped(rows, lambda x: 2 * x), 2 * thetas), (rows.to(torch.double), thetas.double())):
        assert seen.shape == tuple(wanted.shape) and seen.dtype == wanted.dtype and seen.numel() == wanted.numel() and len(seen) == 12
        assert all(seen[at].equal(wanted[at]) for at in (0, -1, slice(2, 7), slice(None), slice(5, 5), [3, 1], torch.tensor([0, 11, 0])))
        assert torch.stack(list(seen)).equal(wanted)
        assert [part[:].tolist() for part in seen.split(5)] == [part.tolist() for part in wanted.split(5)]
    mask = torch.arange(12) % 3 == 1
    for at in (np.int64(3), torch.tensor(3), np.array([3, 1]), mask, mask.numpy(), mask.tolist(), range(2, 4), []):
        assert rows[at].equal(thetas[at])
    for wrong, error in ((12, IndexError), ([0, 12], IndexError), (mask[:5], IndexError), ((1, 2), TypeError)):
        with pytest.raises(error):
            rows[wrong]
    reads, take = [], Stored.take
    monkeypatch.setattr(Stored, "take", lambda self, nets: reads.extend(nets) or take(self, nets))
    assert [len(part[:]) for part in rows.split(5)] == [5, 5, 2] and reads == list(range(12))  # each network is read once
    paths = write_networks(tmp_path / "again", spec, rows)
    assert read_networks(paths, spec).equal(thetas)


# Adding networks


def test_a_zoo_is_its_files_and_says_so(tmp_path, spec, folder):
    zoo = quietly(tmp_path / "zoo.safetensors", folder, spec)
    assert zoo.thetas[:].equal(read_networks(folder, spec))
    assert [one["path"] for one in zoo.networks] == [str(path) for path in network_files(folder)]
    assert len({one["sha256"] for one in zoo.networks}) == 12
    with safe_open(tmp_path / "zoo.safetensors", "pt") as file:  # any reader opens it
        assert file.get_tensor("thetas").equal(zoo.thetas[:])
    again = open_zoo(tmp_path / "zoo.safetensors")
    assert again.spec == spec and all(again.spec.rest[name].equal(value) for name, value in spec.rest.items())


@pytest.mark.parametrize("stop", [0, 1, 5, 11])
def test_an_interrupted_zoo_is_whole_and_goes_on(stop, tmp_path, spec, folder, monkeypatch):
    path, read, seen = tmp_path / "zoo.safetensors", [], []

    def interrupted(file, *rest):
        if len(read) == stop + 1:  # the first network is read once more, to know its precision
            raise KeyboardInterrupt
        read.append(file)
        return original(file, *rest)

    from geoflow.zoo import large

    original = large.read_network
    monkeypatch.setattr(large, "read_network", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quietly(path, folder, spec)
    assert len(open_zoo(path, spec).thetas) == stop
    with path.open("ab") as file:  # what a stop in the middle of a network leaves
        file.write(b"half a network")
    monkeypatch.setattr(large, "read_network", lambda file, *rest: seen.append(file) or original(file, *rest))
    assert quietly(path, folder, spec).thetas[:].equal(read_networks(folder, spec))
    assert seen == network_files(folder)[stop:]  # nothing is read twice
    assert quietly(path, folder, spec).thetas.shape == (12, spec.weights)


def test_more_networks_come_behind(tmp_path, spec, folder):
    path, files = tmp_path / "zoo.safetensors", network_files(folder)
    quietly(path, files[5:7], spec)
    zoo = quietly(path, folder, spec)
    assert zoo.thetas[:].equal(read_networks([*files[5:7], *files[:5], *files[7:]], spec))


def test_a_full_disk_keeps_what_was_written(tmp_path, spec, folder, monkeypatch):
    path, write, most = tmp_path / "zoo.safetensors", os.pwrite, []

    def full(file, content, start):
        """A disk with room for three networks, and a part of the next one."""
        most.append(2 * os.fstat(file).st_size + 3 * 4 * spec.weights + 50)  # a copy of the header stands behind a row at times
        if start >= most[0]:
            raise OSError(28, "No space left on device")
        return write(file, content[: most[0] - start], start)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(
        OSError, match=r"zoo\.safetensors: the disk is full after 3 networks, which are kept\. The next one needs .* goes on"
    ):
        quietly(path, folder, spec)
    monkeypatch.undo()
    assert open_zoo(path, spec).thetas[:].equal(read_networks(folder, spec)[:3])
    assert quietly(path, folder, spec).thetas[:].equal(read_networks(folder, spec))


class Killed(BaseException):
    """The end of a process, after which nothing else is done."""


def add_rows(path, rows):
    with appending(path, "thetas", 5, torch.float32, {"x": "y"}, {"small": torch.arange(3)}) as file:
        file.add(rows[len(file) :], [{"number": number} for number in range(len(file), len(rows))])


@pytest.mark.parametrize("stop", [*range(0, 120, 7), 900, 1400, 2000, 2600, 2700, 2800, 4000])
def test_a_process_that_is_killed_at_any_byte_loses_no_row(stop, tmp_path, monkeypatch):
    """The half-written header is the worst: the file must be readable at once, by itself, and by the same call again."""
    monkeypatch.setattr(growing, "ROOM", 1000)
    path, rows, write, left = tmp_path / "a.safetensors", torch.randn(4, 5), os.pwrite, [stop]
    add_rows(path, rows[:2])

    def killed(file, content, start):
        done = min(len(content), left[0])
        left[0] -= done
        write(file, content[:done], start)
        if done < len(content):
            raise Killed
        return done

    monkeypatch.setattr(os, "pwrite", killed)
    with pytest.raises(Killed):
        add_rows(path, rows)
    monkeypatch.undo()
    found = stored(path)
    assert 2 <= len(found) <= 4 and found[:].equal(rows[: len(found)])
    assert [one["number"] for one in words_of(path)[1]] == list(range(len(found)))
    assert small_tensors(path, "small")["small"].equal(torch.arange(3))
    add_rows(path, rows)
    assert stored(path)[:].equal(rows)
    with safe_open(path, "pt") as file:  # nothing is left behind the rows
        assert file.get_tensor("thetas").equal(rows)


def test_a_header_without_room_is_said_and_nothing_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(growing, "ROOM", 400)
    path = tmp_path / "a.safetensors"
    named = pytest.raises(ValueError, match=r"has no room left to say what further rows are, after 1\.")
    with named, appending(path, "thetas", 5, torch.float32, {}) as file:
        file.add(torch.ones(2, 5), [{"path": "x" * 300}] * 2)
    with safe_open(path, "pt") as file:
        assert file.get_tensor("thetas").shape == (1, 5)


def test_rows_of_another_length_are_refused(tmp_path):
    for rows in (torch.ones(2, 4), torch.ones(2, 6)):
        refused = pytest.raises(ValueError, match=r"a\.safetensors has rows of 5 numbers, not")
        with refused, appending(tmp_path / "a.safetensors", "thetas", 5, torch.half, {}) as file:
            file.add(rows)
    assert len(stored(tmp_path / "a.safetensors")) == 0


def test_two_that_add_to_one_file_take_turns(tmp_path):
    """Locks belong to an open file, so threads stand for processes."""
    path, rows, begun = tmp_path / "a.safetensors", torch.randn(6, 5), Barrier(3)

    def add(number: int) -> None:
        begun.wait()
        for net in (2 * number, 2 * number + 1):
            with appending(path, "thetas", 5, torch.float32, {"x": "y"}) as file:
                file.add(rows[net : net + 1], [net])

    with warnings.catch_warnings(), ThreadPoolExecutor(3) as pool:
        warnings.simplefilter("ignore")
        list(pool.map(add, range(3)))
    order = words_of(path)[1]
    assert sorted(order) == list(range(6)) and stored(path)[:].equal(rows[order])


def test_one_that_waits_says_so_and_finds_what_was_added(tmp_path):
    path, rows = tmp_path / "a.safetensors", torch.randn(2, 5)

    def second() -> None:
        with appending(path, "thetas", 5, torch.float32, {}) as file:
            file.add(rows[1:], [len(file)])

    with ThreadPoolExecutor(1) as pool, pytest.warns(UserWarning, match=r"Another process adds to .*a\.safetensors"):
        with appending(path, "thetas", 5, torch.float32, {}) as file:
            waiting = pool.submit(second)
            sleep(0.2)
            file.add(rows[:1], [0])
            assert not waiting.done() and len(stored(path)) == 1
        waiting.result()
    assert words_of(path)[1] == [0, 1] and stored(path)[:].equal(rows)


@pytest.mark.parametrize(("dtype", "kept"), [(None, torch.float32), (torch.half, torch.half), (torch.double, torch.double)])
def test_the_precision_is_that_of_the_first_network_or_the_one_asked_for(dtype, kept, tmp_path, spec, folder):
    zoo = quietly(tmp_path / "zoo.safetensors", folder, spec, dtype=dtype)
    assert zoo.thetas.dtype == kept and zoo.thetas[:].equal(read_networks(folder, spec).to(kept))


def test_bad_networks_and_files_are_named_and_the_good_ones_kept(tmp_path, spec, folder):
    path, state = tmp_path / "zoo.safetensors", build().state_dict()
    torch.save(state | {"0.bias": torch.full((5,), torch.nan)}, folder / "seed3.pt")
    with pytest.raises(ValueError, match=r"seed3\.pt: '0\.bias' holds NaN"):
        quietly(path, folder, spec)
    assert len(open_zoo(path).thetas) == 3
    torch.save({name: value.double() for name, value in state.items()}, folder / "seed3.pt")
    with pytest.raises(ValueError, match=r"seed3\.pt holds a network in torch\.float64, and .* Make the zoo with dtype=torch\.float64"):
        quietly(path, folder, spec)
    with pytest.raises(ValueError, match=r"holds networks in torch\.float32, not in torch\.float16"):
        quietly(path, folder, spec, dtype=torch.half)
    torch.save(state | {"0.bias": torch.full((5,), 1e6)}, folder / "seed3.pt")
    with pytest.raises(ValueError, match=r"seed3\.pt: A weight is NaN, or too large for torch\.float16"):
        quietly(tmp_path / "half.safetensors", folder, spec, dtype=torch.half)
    torch.save(build().state_dict(), folder / "seed1.pt")
    os.utime(folder / "seed1.pt", (1, 1))
    with pytest.raises(ValueError, match=r"seed1\.pt has changed since it was added"):
        quietly(path, folder, spec)


def test_copies_moved_files_and_files_of_its_own_are_no_new_networks(tmp_path, spec, folder):
    path, first = folder / "zoo.safetensors", network_files(folder)[0]
    shutil.copy(first, folder / "seed12.pt")
    with pytest.warns(UserWarning, match=r"1 files, such as .*seed12\.pt, were passed over: they hold the same bytes"):
        assert quietly(path, folder, spec).thetas.shape == (12, spec.weights)
    (folder / "seed12.pt").unlink()
    zoo = quietly(path, [first, folder / ".." / "runs" / first.name], spec).thetas
    assert quietly(tmp_path / "once.safetensors", [first, first], spec).thetas.shape == (1, spec.weights)
    geoflow.fit(spec, zoo, latent="pca", iterations=1, batch=4, progress=False)  # writes two files beside the zoo
    moved = folder.rename(tmp_path / "moved")
    with pytest.warns(UserWarning, match="12 files"):
        assert quietly(moved / "zoo.safetensors", moved, spec).thetas.shape == (12, spec.weights)


def test_precisions_that_do_not_hold_each_other_need_a_wider_zoo(tmp_path, spec, folder):
    state = {name: value.half() if value.is_floating_point() else value for name, value in build().state_dict().items()}
    torch.save(state, folder / "seed3.pt")
    with pytest.raises(ValueError, match=r"seed3\.pt holds .*float16, and .*bfloat16\. Make the zoo with dtype=torch\.float32"):
        torch.save({name: value.bfloat16() if value.is_floating_point() else value for name, value in state.items()}, folder / "seed0.pt")
        quietly(tmp_path / "zoo.safetensors", [folder / "seed0.pt", folder / "seed3.pt"], spec)


def test_a_mark_tells_zoos_apart_and_outlives_further_networks(tmp_path, spec, folder):
    files = network_files(folder)
    zoo = quietly(tmp_path / "zoo.safetensors", files[:6], spec).thetas
    mark = zoo.mark()
    more = quietly(tmp_path / "zoo.safetensors", folder, spec).thetas
    assert zoo.mark() == mark and zoo[:].equal(more[:6]) and more.mark() != mark
    others = [quietly(tmp_path / f"{name}.safetensors", some, spec).thetas for name, some in
              (("copy", files[:6]), ("turned", files[5::-1]), ("others", files[6:]))]  # fmt: skip
    assert [other.mark() == mark for other in others] == [True, False, False]
    with zoo.path.open("r+b") as file:
        file.seek(zoo.start + 50)
        file.write(b"other")
    assert zoo.mark() != mark


def test_a_zoo_is_found_from_another_working_folder(tmp_path, spec, folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    zoo = quietly("zoo.safetensors", "runs", spec).thetas
    flow = geoflow.fit(spec, zoo, latent="pca", iterations=1, batch=4, progress=False)
    monkeypatch.chdir(folder)
    assert zoo[:2].shape == (2, spec.weights) and len(geoflow.sample(flow, 2, steps=1)) == 2


def test_a_cut_zoo_and_one_of_another_network_are_named(tmp_path, spec, folder):
    path, other = tmp_path / "zoo.safetensors", spec_of(build(6), torch.zeros(2, 4))
    quietly(path, folder, spec)
    for way in (open_zoo, lambda path, spec: quietly(path, folder, spec)):
        with pytest.raises(ValueError, match=r"another architecture: '0\.weight' of shape \[5, 4\] stands where .* shape \[6, 4\]"):
            way(path, other)
    shutil.copy(path, cut := tmp_path / "cut.safetensors")
    os.truncate(cut, path.stat().st_size - 1)
    for way in (open_zoo, lambda path, spec: quietly(path, folder, spec)):
        with pytest.raises(ValueError, match=r"cut\.safetensors is cut short"):
            way(cut, spec)
    (tmp_path / "letter.safetensors").write_text("not a zoo " * 9)
    with pytest.raises(ValueError, match=r"letter\.safetensors is cut short or no safetensors file"):
        open_zoo(tmp_path / "letter.safetensors")
    with appending(tmp_path / "plain.safetensors", "thetas", 7, torch.half, {}) as rows:
        rows.add(torch.ones(2, 7))
    with pytest.raises(ValueError, match=r"plain\.safetensors has no table of its networks"):
        open_zoo(tmp_path / "plain.safetensors")
    for name, size, words, said in (("thetas", 8, {}, "rows of 8 numbers"), ("points", 7, {}, "None of None as 'points'"),
                                    ("thetas", 7, {"spec": "x"}, "another 'spec' of itself")):  # fmt: skip
        with pytest.raises(ValueError, match=said), appending(tmp_path / "plain.safetensors", name, size, torch.half, words):
            pass
    assert len(stored(tmp_path / "plain.safetensors")) == 2


def test_small_tensors_of_every_kind_lie_beside(tmp_path):
    beside = {"a": torch.tensor(True), "b": torch.arange(3), "c": torch.ones(2, 2).bfloat16(), "d": torch.tensor([1], dtype=torch.uint8)}
    for start in (0, 2):
        with appending(tmp_path / "a.safetensors", "thetas", 5, torch.float64, {"x": "y"}, beside) as rows:
            rows.add(torch.full((2, 5), float(start)).double())
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert all(file.get_tensor(name).equal(value) for name, value in beside.items())
        assert file.get_tensor("thetas")[:, 0].tolist() == [0, 0, 2, 2]
    other = beside | {"b": torch.arange(1, 4)}
    named = pytest.raises(ValueError, match="holds another 'b'")
    with named, appending(tmp_path / "a.safetensors", "thetas", 5, torch.float64, {"x": "y"}, other):
        pass
