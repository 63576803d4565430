"""Batches of real images: read from the official forms, chosen by the run alone, refused where they do not fit."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zcpipe.errors import DataError, UsageError
from zcpipe.inputs import batch, batch_of
from zcpipe.ops.philox import Stream
from zcpipe.run import RunSpec

CHANCE = np.random.default_rng(0)


def spec(inputs: object = "noise", **fields: object) -> RunSpec:
    plain = {"space": "nasbench201", "dataset": "cifar10", "proxies": ("params",), "batch_size": 4}
    return RunSpec.model_validate({**plain, "inputs": str(inputs), **fields})


@pytest.fixture(autouse=True)
def as_in_a_new_process() -> None:
    batch._drawn.clear()


def pixels(n: int, side: int = 32) -> np.ndarray:
    """Images [n, side, side, 3], each different."""
    return CHANCE.integers(0, 256, (n, side, side, 3), np.uint8)


def flat(images: np.ndarray) -> np.ndarray:
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def python2(content: dict[str, object]) -> bytes:
    """Pickle as Python 2 did for the official files: its own texts for texts and pixels, a memo that begins at 1."""

    def text(value: bytes) -> bytes:
        short = len(value) < 256
        return (b"U" + bytes([len(value)]) if short else b"T" + struct.pack("<i", len(value))) + value

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    def array(value: np.ndarray) -> bytes:
        made = b"cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85" + text(b"b") + b"\x87R"
        dtype = b"cnumpy\ndtype\n" + text(value.dtype.str[1:].encode()) + b"K\x00K\x01\x87R"
        state = b"(K\x03" + text(value.dtype.str[:1].encode()) + b"NNN" + number(-1) * 2 + b"K\x00tb"
        shape = b"".join(map(number, value.shape)) + [b"", b"\x85", b"\x86"][value.ndim]
        return made + b"(K\x01" + shape + dtype + state + b"\x89" + text(value.tobytes()) + b"tb"

    def any_of(value: object) -> bytes:
        if isinstance(value, np.ndarray):
            return array(value)
        if isinstance(value, list):
            return b"](" + b"".join(map(any_of, value)) + b"e"
        return number(value) if isinstance(value, int) else text(str(value).encode())

    items = [
        text(key.encode()) + (b"q\x02" if i == 0 else b"") + any_of(v) for i, (key, v) in enumerate(content.items())
    ]
    return b"\x80\x02}q\x01(" + b"".join(items) + b"u."


def protocol(number: int):
    return lambda content: pickle.dumps(content, protocol=number)


WRITERS = [python2, protocol(2), protocol(3), protocol(4)]


def cifar10(directory: Path, images: np.ndarray, labels: list[int], write=python2) -> Path:
    """Five batches, as the archive holds them."""
    directory.mkdir(exist_ok=True)
    for i, rows in enumerate(np.array_split(np.arange(len(images)), 5)):
        content = {
            "batch_label": f"training batch {i + 1} of 5",
            "labels": [labels[row] for row in rows],
            "data": flat(images[rows]),
            "filenames": [f"thing_s_{row:06d}.png" for row in rows],
        }
        (directory / f"data_batch_{i + 1}").write_bytes(write(content))
    return directory


def archive(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def unnormalised(images: torch.Tensor, mean: list[float], std: list[float]) -> np.ndarray:  # -> [N, H, W, C]
    values = images.permute(0, 2, 3, 1).double() * torch.tensor(std) + torch.tensor(mean)
    return (values * 255).round().numpy().astype(np.uint8)


# -- reading


@pytest.mark.parametrize("write", WRITERS)
def test_cifar10_batches_of_a_directory(tmp_path: Path, write) -> None:
    images, labels = pixels(23), CHANCE.integers(0, 10, 23).tolist()
    run = spec(f"cifar10:{cifar10(tmp_path / 'cifar-10-batches-py', images, labels, write)}", batch_size=23)
    got = batch_of(run, 0)
    assert got.images.shape == (23, 3, 32, 32) and got.images.dtype == torch.float32
    assert got.images.is_contiguous(memory_format=torch.channels_last) and got.labels.dtype == torch.int64
    back = unnormalised(got.images, [v / 255 for v in (125.3, 123.0, 113.9)], [v / 255 for v in (63.0, 62.1, 66.7)])
    found = {image.tobytes(): label for image, label in zip(back, got.labels.tolist(), strict=True)}
    assert found == {image.tobytes(): label for image, label in zip(images, labels, strict=True)}


def test_cifar100_reads_fine_labels_of_the_training_file(tmp_path: Path) -> None:
    images = pixels(6)
    content = {"data": flat(images), "fine_labels": [99, 0, 5, 7, 50, 3], "coarse_labels": [1] * 6, "batch_label": "x"}
    (tmp_path / "train").write_bytes(python2(content))
    for path in (tmp_path, tmp_path / "train"):
        got = batch_of(spec(f"cifar100:{path}", dataset="cifar100", batch_size=6), 0)
        assert sorted(got.labels.tolist()) == [0, 3, 5, 7, 50, 99]


@pytest.mark.parametrize("write", WRITERS)
def test_imagenet16_keeps_its_first_120_classes_and_numbers_them_from_0(tmp_path: Path, write) -> None:
    images, labels = pixels(40, 16), [1, 120, 121, 1000] * 10
    for i in range(10):
        rows = slice(4 * i, 4 * i + 4)
        content = {"data": flat(images[rows]), "labels": labels[rows], "mean": np.linspace(0, 255, 768)}
        (tmp_path / f"train_data_batch_{i + 1}").write_bytes(write(content))
    got = batch_of(spec(f"imagenet16:{tmp_path}", dataset="imagenet16-120", batch_size=20), 0)
    mean, std = ([v / 255 for v in values] for values in ((122.68, 116.66, 104.01), (63.22, 61.26, 65.09)))
    back = unnormalised(got.images, mean, std)
    want = {images[i].tobytes(): labels[i] - 1 for i in range(40) if labels[i] <= 120}
    assert {image.tobytes(): label for image, label in zip(back, got.labels.tolist(), strict=True)} == want


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_and_its_normalisation(tmp_path: Path, save) -> None:
    images, labels = pixels(2000), CHANCE.integers(0, 10, 2000).astype(np.int16)  # several pieces of reading
    save(tmp_path / "a.npz", images=images, labels=labels, names=np.array(["not", "read"]))
    got = batch_of(spec(f"npz:{tmp_path / 'a.npz'}", batch_size=2000), 0)
    back = unnormalised(got.images, [0.5] * 3, [0.5] * 3)
    assert got.images.min() == -1 and got.images.max() == 1
    want = {image.tobytes(): label for image, label in zip(images, labels.tolist(), strict=True)}
    assert {image.tobytes(): label for image, label in zip(back, got.labels.tolist(), strict=True)} == want
    own = {"mean": np.array([0.1, 0.2, 0.3]), "std": np.array([1.0, 2.0, 4.0], np.float32)}
    save(tmp_path / "b.npz", images=images[:4], labels=labels[:4], **own)
    got = batch_of(spec(f"npz:{tmp_path / 'b.npz'}"), 0)
    assert sorted(map(bytes, unnormalised(got.images, own["mean"].tolist(), own["std"].tolist()))) == sorted(
        map(bytes, images[:4])
    )


def test_real_images(data) -> None:
    got = batch_of(spec(f"npz:{data('cifar10_train_1000.npz')}", batch_size=64), 0)
    assert got.images.shape == (64, 3, 32, 32) and len(set(got.labels.tolist())) == 10
    assert got.images.min() >= -1 and got.images.max() <= 1 and 0.2 < got.images.std() < 1


def test_noise_is_what_it_always_was_and_has_uniform_labels() -> None:
    run = spec(batch_size=2000)
    got = batch_of(run, 1)
    want = Stream.of(0, "nasbench201", "run", 1, "inputs").normal_(torch.empty(2000, 3, 32, 32))
    assert torch.equal(got.images, want) and got.images.is_contiguous(memory_format=torch.channels_last)
    assert np.bincount(got.labels.numpy(), minlength=10).min() > 150
    assert not torch.equal(got.labels, batch_of(run, 0).labels)


# -- choosing


@pytest.fixture(scope="module")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images whose first pixel tells which they are."""
    images = np.zeros((1000, 32, 32, 3), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = np.arange(1000) // 256, np.arange(1000) % 256
    return archive(tmp_path_factory.mktemp("npz") / "a.npz", images=images, labels=np.arange(1000) % 10)


def numbers(images: torch.Tensor) -> list[int]:
    values = ((images[:, :2, 0, 0] + 1) / 2 * 255).round().int()
    return (values[:, 0] * 256 + values[:, 1]).tolist()


@given(st.integers(0, 2**64 - 1), st.integers(1, 1000), st.integers(1, 3))
def test_images_are_drawn_without_replacement_by_seed_and_repeat(
    thousand: Path, seed: int, size: int, repeats: int
) -> None:
    run = spec(f"npz:{thousand}", seed=seed, batch_size=size, repeats=repeats)
    drawn = [batch_of(run, repeat) for repeat in range(repeats)]
    for one in drawn:
        assert len(set(numbers(one.images))) == size
        assert one.labels.tolist() == [number % 10 for number in numbers(one.images)]
    if size > 20:
        assert len({tuple(numbers(one.images)) for one in drawn}) == repeats
        assert numbers(drawn[0].images) != numbers(
            batch_of(spec(f"npz:{thousand}", seed=seed ^ 1, batch_size=size), 0).images
        )
    smaller = spec(f"npz:{thousand}", seed=seed, batch_size=(size + 1) // 2)
    assert numbers(batch_of(smaller, 0).images) == numbers(drawn[0].images)[: (size + 1) // 2]


# -- identity


def test_identity_is_the_content_and_never_the_place(tmp_path: Path) -> None:
    images, labels = pixels(9), np.arange(9)
    one = spec(f"npz:{archive(tmp_path / 'a.npz', images=images, labels=labels)}")
    recipe = one.identity()["recipe"]["inputs"]
    assert recipe == f"npz:{one.inputs_content}" and str(tmp_path) not in str(one.identity())
    np.savez_compressed(tmp_path / "b.npz", labels=labels.astype(np.uint8), images=images)
    assert spec(f"npz:{tmp_path / 'b.npz'}").identity() == one.identity()
    others = [
        archive(tmp_path / "c.npz", images=images ^ 1, labels=labels),
        archive(tmp_path / "d.npz", images=images, labels=(labels + 1) % 9),
        archive(tmp_path / "e.npz", images=images, labels=labels, mean=np.full(3, 0.4)),
    ]
    assert len({spec(f"npz:{path}").identity_hash() for path in (tmp_path / "a.npz", *others)}) == 4
    assert spec(f"npz:{tmp_path / 'a.npz'}", repeats=2).inputs_content != one.inputs_content
    assert RunSpec.model_validate_json(one.model_dump_json()) == one


def test_the_identity_of_noise_stays() -> None:
    assert spec().identity()["recipe"]["inputs"] == "noise"
    assert spec(dataset="not looked at").inputs_content == ""


# -- another size than the data set's


def test_noise_of_another_size(tmp_path: Path) -> None:
    small = spec(resolution=8)
    assert batch_of(small, 0).images.shape[2:] == (8, 8)
    assert torch.equal(batch_of(small, 0).labels, batch_of(spec(), 0).labels)
    assert small.identity()["recipe"]["resolution"] == 8 and small.identity_hash() != spec().identity_hash()
    assert "resolution" not in spec().identity()["recipe"], "tables made before there was a choice have none"


def test_the_data_sets_own_size_is_no_other_run() -> None:
    assert spec(resolution=32) == spec()
    assert spec(resolution=32).identity_hash() == spec().identity_hash()


def test_images_must_have_the_size_that_is_asked_for(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.npz", images=pixels(9)[:, :8, :8], labels=np.arange(9))
    assert batch_of(spec(f"npz:{path}", resolution=8), 0).images.shape[2:] == (8, 8)
    with pytest.raises(DataError, match="8 x 8 pixels in 3 channels, but cifar10 of nasbench201 takes 32 x 32"):
        spec(f"npz:{path}")
    with pytest.raises(UsageError, match="resolution"):
        spec(resolution=0)


def test_another_content_than_the_specs_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.npz", images=pixels(9), labels=np.arange(9))
    run = spec(f"npz:{path}")
    first = batch_of(run, 0)
    archive(path, images=pixels(9), labels=np.arange(9))
    assert torch.equal(batch_of(run, 0).images, first.images), "a process reads once"
    batch._drawn.clear()
    with pytest.raises(DataError, match="gives another batch than when the run was specified"):
        batch_of(run, 0)


# -- what does not fit


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ("nois", "unknown kind of inputs 'nois'; did you mean noise"),
        ("npy:a", "did you mean npz"),
        ("", "unknown kind of inputs ''; known: cifar10"),
        ("npz", "noise or KIND:PATH, got 'npz'; for example npz:PATH"),
        ("cifar10:", "KIND:PATH"),
        ("noise:3", "noise takes no path, got 'noise:3'"),
    ],
)
def test_what_names_no_inputs(inputs: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        spec(inputs)


def test_images_must_fit_the_dataset_and_fill_the_batch(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.npz", images=pixels(9), labels=np.arange(9))
    with pytest.raises(UsageError, match="unknown dataset 'cifar1'"):
        spec(f"npz:{path}", dataset="cifar1")
    cases = [
        ({"dataset": "imagenet16-120"}, "its images are 32 x 32 pixels in 3 channels, but .* takes 16 x 16 pixels"),
        ({"batch_size": 10}, "holds 9 images for a batch of 10; lower --batch-size"),
    ]
    for fields, says in cases:
        with pytest.raises(DataError, match=says):
            spec(f"npz:{path}", **fields)
    for bad in (10, -1):
        archive(path, images=pixels(9), labels=np.array([*range(8), bad]))
        with pytest.raises(DataError, match=rf"has the label {bad}, but .* has the 10 classes 0 to 9"):
            spec(f"npz:{path}")


def test_an_archive_under_another_kind_is_told_its_own(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.npz", images=pixels(9), labels=np.arange(9))
    for kind in ("cifar10", "cifar100", "imagenet16"):
        with pytest.raises(DataError, match=f"is a NumPy archive and no file of {kind}; use --inputs npz:"):
            spec(f"{kind}:{path}")


IMAGES, LABELS = np.zeros((5, 32, 32, 3), np.uint8), np.arange(5)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"images": IMAGES}, "has no array 'labels' .*it holds images.npy"),
        ({"labels": LABELS}, "has no array 'images'"),
        ({"images": IMAGES.astype(np.float32), "labels": LABELS}, "'images' must be uint8 .* got float32"),
        ({"images": IMAGES[..., 0], "labels": LABELS}, r"'images' must be uint8 .* got uint8 \[5, 32, 32\]"),
        ({"images": IMAGES, "labels": LABELS[:4]}, "'labels' must be 5 integers"),
        ({"images": IMAGES, "labels": LABELS / 2}, "'labels' must be 5 integers, .* got float64"),
        ({"images": IMAGES, "labels": np.full(5, 2**63, np.uint64)}, "which is no class"),
        ({"images": IMAGES, "labels": np.array([{}] * 5)}, "'labels' holds Python objects, which are never read"),
        ({"images": np.asfortranarray(IMAGES), "labels": LABELS}, "Fortran order; save numpy.ascontiguousarray"),
        ({"images": IMAGES, "labels": LABELS, "mean": np.zeros(2)}, "'mean' must be 3 finite floats"),
        ({"images": IMAGES, "labels": LABELS, "std": np.full(3, np.nan)}, "'std' must be 3 finite floats"),
        ({"images": IMAGES, "labels": LABELS, "std": np.zeros(3)}, "'std' must be positive"),
        ({"images": IMAGES, "labels": LABELS, "mean": np.full(3, 125.3)}, "in 0 to 1.*divide 'mean' and 'std' by 255"),
        ({"images": IMAGES, "labels": LABELS, "mean": np.full(3, -0.1)}, "'mean' must lie in 0 to 1"),
    ],
)
def test_archives_of_other_things(tmp_path: Path, arrays: dict[str, np.ndarray], says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        spec(f"npz:{archive(tmp_path / 'a.npz', **arrays)}")
    assert str(tmp_path / "a.npz") in str(caught.value) and "\n" not in str(caught.value)


@given(st.data())
def test_damaged_archives_are_refused_or_read_the_same(tmp_path_factory: pytest.TempPathFactory, data) -> None:
    good = io.BytesIO()
    data.draw(st.sampled_from([np.savez, np.savez_compressed]))(good, images=IMAGES[:, :4, :4], labels=LABELS)
    content = bytearray(good.getvalue())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path_factory.mktemp("d") / "a.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.npz"):
        spec(f"npz:{path}")  # if it is read, its images are too small


def test_headers_are_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    for shape in ("(999999999, 32, 32, 3)", "(-1, 32, 32, 3)", "(5, 32, 32, 3)"):
        header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("images.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(99))
            labels = io.BytesIO()
            np.save(labels, LABELS)
            file.writestr("labels.npy", labels.getvalue())
        with pytest.raises(DataError, match=r"must be|damaged|too early"):
            spec(f"npz:{path}")


def images_of(**changes: object) -> dict[str, object]:
    return {"labels": [0, 1, 2, 3, 4], "data": flat(IMAGES), **changes}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"labels": [1] * 5}, "'data' must be images as uint8 .* got none"),
        (images_of(data=flat(IMAGES).astype(np.int16)), "got int16"),
        (images_of(data=flat(IMAGES)[:, :768]), r"got uint8 \[5, 768\]"),
        (images_of(data=[1, 2]), "got none"),
        (images_of(labels=[1, 2]), "'labels' must be a list of 5 labels"),
        (images_of(labels=["cat"] * 5), "'labels' must be a list"),
        ({"fine_labels": [1] * 5, "data": flat(IMAGES)}, "'labels' must be a list"),
    ],
)
def test_batches_of_other_things(tmp_path: Path, content: dict[str, object], says: str) -> None:
    for write in (python2, protocol(4)):
        (tmp_path / "data_batch_1").write_bytes(write(content))
        with pytest.raises(DataError, match=rf"data_batch_1: .*{says}"):
            spec(f"cifar10:{tmp_path / 'data_batch_1'}")


class Hostile:
    def __reduce__(self):
        return print, ("ran",)


@pytest.mark.parametrize(
    ("written", "says"),
    [
        (pickle.dumps({"data": Hostile()}), "hostile, and nothing in it was run"),
        (pickle.dumps(images_of(data=np.array([{}]))), "only plain numbers are read"),
        (pickle.dumps([1]), "no dict of images"),
        (b"", "truncated"),
        (python2(images_of())[:-4000], "truncated"),
        (b"\x89PNG and so on", "no pickle"),
    ],
)
def test_hostile_and_truncated_batches(tmp_path: Path, capsys, written: bytes, says: str) -> None:
    (tmp_path / "data_batch_1").write_bytes(written)
    with pytest.raises(DataError, match=rf"data_batch_1: .*{says}"):
        spec(f"cifar10:{tmp_path / 'data_batch_1'}")
    assert capsys.readouterr().out == ""


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    for kind in ("cifar10", "cifar100", "imagenet16", "npz"):
        with pytest.raises(DataError, match=r"absent: no such file"):
            spec(f"{kind}:{tmp_path / 'absent'}")
    cifar10(tmp_path, pixels(5), [0] * 5)
    (tmp_path / "data_batch_3").unlink()
    with pytest.raises(DataError, match=r"data_batch_3: no such file; the directory must hold data_batch_1"):
        spec(f"cifar10:{tmp_path}")
    with pytest.raises(DataError, match="no such file; give --inputs npz:PATH"):
        spec(f"npz:{tmp_path}")


@pytest.mark.parametrize("kind", ["cifar10", "cifar100", "imagenet16", "npz"])
def test_pipes_and_devices_are_no_files(tmp_path: Path, kind: str) -> None:
    """A pipe would never end."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(DataError, match=r"(pipe|zero): no such file"):
            spec(f"{kind}:{path}")
