"""Data sources: what is selected, how it is scaled, and one sentence for whatever is wrong with it."""

import gzip
import inspect
import struct
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from meanfield import datasets
from meanfield.config import DataConfig
from meanfield.errors import InputError

REAL = Path(__file__).parents[2] / "shared" / "data"
GENERATED = ("digits", "breast_cancer", "diabetes", "sphere", "sine")


def idx(array: np.ndarray) -> bytes:
    """An IDX file of bytes, written here and not by the code under test."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with twelve images of 2 x 3 pixels, compressed, and their labels, plain."""
    pixels = np.random.default_rng(1).integers(0, 256, (12, 2, 3))
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pixels)))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(np.arange(12) % 3))
    return tmp_path


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "table.csv"
    path.write_text("day,a,b,y\nmon,1,0,10\ntue,0,2,-20\nwed,3,3,5\nthu,-1,4,0\n")
    return path


def write_npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


# What every source keeps to


@pytest.mark.parametrize("name", GENERATED)
def test_sources_keep_assumption_4_1(name: str) -> None:
    data = datasets.load(DataConfig(source=name, n=40, n_test=10))
    assert data.x.dtype == data.y.dtype == np.float64
    assert data.x.shape == (40, data.x.shape[1]) and data.y.shape == (40,)
    assert data.x_test.shape == (10, data.x.shape[1]) and data.y_test.shape == (10,)
    assert np.linalg.norm(data.x, axis=1).max() == pytest.approx(1, abs=1e-12)
    assert np.abs(data.y).max() <= 1 + 1e-15
    assert len(data.names) == data.x.shape[1] and len(set(data.names)) == len(data.names)
    assert any("Assumption 4.1 holds" in note for note in data.notes)


@pytest.mark.parametrize("name", GENERATED)
def test_public_functions_return_what_load_does(name: str) -> None:
    function = getattr(datasets, name)
    data = datasets.load(DataConfig(source=name, n=20, n_test=5, seed=3))
    arrays = function(n=20, n_test=5, seed=3)
    assert isinstance(arrays, tuple) and len(arrays) == 4 and len(function(n=20)) == 2
    for ours, theirs in zip(arrays, (data.x, data.y, data.x_test, data.y_test), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    x, _ = function(n=20, seed=4)
    assert not np.array_equal(x, arrays[0])


@pytest.mark.parametrize("name", sorted(datasets.SOURCES))
def test_every_source_speaks_the_language_of_the_configuration(name: str) -> None:
    parameters = inspect.signature(datasets.SOURCES[name]).parameters
    assert set(parameters) <= set(DataConfig.keys())
    public = getattr(datasets, name)
    assert public.__doc__ and name in datasets.__all__
    assert inspect.signature(public).parameters == parameters


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"source": "digts"}, "Did you mean 'digits'?"),
        ({"source": "digits", "d": 3}, "data.d = 3 means nothing to the source 'digits'"),
        ({"source": "npz"}, "data.path did not come"),
        ({"source": "digits", "classes": (3, 12)}, "no row has the label 12"),
        ({"source": "digits", "n": 1000}, "at most 357 rows"),
        ({"source": "digits", "n": 300, "n_test": 100}, "data.n_test = 100"),
        ({"source": "digits", "n": 2, "seed": 0}, "one class only"),
        ({"source": "sphere", "teacher": "netwrk"}, "Did you mean 'network'?"),
        ({"source": "csv", "path": "none.csv", "target": "y"}, "cannot be read: No such file"),
        ({"source": "npz", "path": "none.npz"}, "cannot be read"),
        ({"source": "mnist", "path": "none"}, "no labels lie beside|cannot be read"),
    ],
)
def test_a_section_that_asks_for_the_impossible_is_refused(keys: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        datasets.load(DataConfig(**keys))


def test_arguments_are_checked_like_the_configuration() -> None:
    for wrong in ({"n": 0}, {"n": 2.5}, {"seed": -1}, {"classes": (3, 3)}, {"n_test": -1}):
        with pytest.raises(InputError):
            datasets.digits(**wrong)


# Single sources


def test_digits_are_the_rows_of_the_reference_values() -> None:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    rows = np.flatnonzero(np.isin(bunch.target, (3, 8)))
    rows = rows[np.random.default_rng(0).permutation(len(rows))[:100]]
    x, y = datasets.digits(classes=(3, 8), n=100)
    np.testing.assert_array_equal(y, np.where(bunch.target[rows] == 3, 1.0, -1.0))
    np.testing.assert_allclose(x, bunch.data[rows] / np.linalg.norm(bunch.data[rows], axis=1).max(), rtol=1e-15)


def test_kernel_of_digits_has_the_reference_eigenvalues() -> None:
    """THEORY: Lambda = .00143, lambda_max = 53.2 for tanh; the kernel by quadrature, independent of `units`."""
    x, _ = datasets.digits(classes=(3, 8), n=100)
    gram = x @ x.T
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    weights = weights / weights.sum()
    i, j = np.triu_indices(100)
    size = np.sqrt(np.diag(gram))
    cosine = np.clip(gram[i, j] / (size[i] * size[j]), -1, 1)
    first = size[i][:, None, None] * nodes[:, None]
    second = size[j][:, None, None] * (
        cosine[:, None, None] * nodes[:, None] + np.sqrt(1 - cosine**2)[:, None, None] * nodes
    )
    h, k = np.tanh(first), np.tanh(second)
    values = np.einsum("pab,a,b->p", h * k + gram[i, j][:, None, None] * (1 - h**2) * (1 - k**2), weights, weights)
    kernel = np.zeros((100, 100))
    kernel[i, j] = kernel[j, i] = values
    eigenvalues = np.linalg.eigvalsh(kernel)
    assert eigenvalues[0] == pytest.approx(0.00143, abs=5e-6)
    assert eigenvalues[-1] == pytest.approx(53.2, abs=0.05)


def test_classes_change_sign_when_swapped() -> None:
    _, y = datasets.digits(classes=(3, 8), n=30)
    x, swapped = datasets.digits(classes=(8, 3), n=30)
    np.testing.assert_array_equal(swapped, -y)
    assert x.shape == (30, 64) and set(y) == {-1.0, 1.0}


@pytest.mark.parametrize("teacher", sorted(datasets.TEACHERS))
def test_sphere_is_uniform_and_a_prefix_of_the_larger_one(teacher: str) -> None:
    x, y = datasets.sphere(n=2000, d=5, teacher=teacher, seed=7)
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, atol=1e-14)
    error = 4 * np.sqrt(1 / 5 / 2000)
    assert np.abs(x.mean(axis=0)).max() < error
    np.testing.assert_allclose(x.T @ x / 2000, np.eye(5) / 5, atol=4 * np.sqrt(3 / 35 / 2000))
    part, labels = datasets.sphere(n=100, d=5, teacher=teacher, seed=7)
    np.testing.assert_array_equal(part, x[:100])
    np.testing.assert_array_equal(labels, y[:100])


def test_teachers_are_what_they_say() -> None:
    x, y = datasets.sphere(n=50, d=4, teacher="linear")
    w, *_ = np.linalg.lstsq(x, y, rcond=None)
    np.testing.assert_allclose(x @ w, y, atol=1e-13)
    assert np.linalg.norm(w) == pytest.approx(1, abs=1e-12)
    assert set(datasets.sphere(n=50, teacher="random")[1]) == {-1.0, 1.0}


def test_sine_windows_follow_the_series() -> None:
    x, y = datasets.sine(n=30, lags=4, noise=0.0, scale=False)
    series = np.sin(0.5 * np.arange(34))
    for i in range(30):
        np.testing.assert_allclose(x[i], series[i : i + 4], atol=1e-15)
        assert y[i] == pytest.approx(series[i + 4], abs=1e-15)


def test_csv_columns_by_name(table: Path) -> None:
    data = datasets.load(DataConfig(source="csv", path=table, target="y", columns=("b", "a"), scale=False))
    rows = {(0.0, 1.0, 10.0), (2.0, 0.0, -20.0), (3.0, 3.0, 5.0), (4.0, -1.0, 0.0)}
    assert {(*map(float, x), float(y)) for x, y in zip(data.x, data.y, strict=True)} == rows
    assert data.names == ("b", "a") and "Assumption 4.1 fails" in data.notes[-1]
    x, y = datasets.csv(table, target="y", columns=("a", "b"))
    assert np.linalg.norm(x, axis=1).max() == pytest.approx(1) and np.abs(y).max() == 1


def test_csv_time_series(tmp_path: Path) -> None:
    path = tmp_path / "series.csv"
    path.write_text("date,t\n" + "".join(f"d{k},{k * k}\n" for k in range(10)))
    x, y, x_test, y_test = datasets.csv(path, target="t", lags=3, n=5, n_test=2, scale=False)
    np.testing.assert_array_equal(x[1], [1, 4, 9])
    np.testing.assert_array_equal(y, [9, 16, 25, 36, 49])
    np.testing.assert_array_equal(y_test, [64, 81])
    assert x_test.shape == (2, 3)
    for wrong in ({"lags": 10, "target": "t"}, {"lags": 2}, {"lags": 2, "target": "t", "columns": ("date",)}):
        with pytest.raises(InputError, match=r"data\.lags"):
            datasets.csv(path, **wrong)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no rows"),
        ("a,y\n", "no rows"),
        ("a,a\n1,2\n", "two columns named 'a'"),
        ("a,y\n1,2\n3\n", "line 3 has 1 cells: wanted 2"),
        ("a,y\n1,2\nred,4\n", "line 3, column 'a': 'red' is not a finite number"),
        ("a,y\n1,2\n,4\n", "line 3, column 'a': '' is not a finite number"),
        ("a,y\n1,nan\n", "line 2, column 'y': 'nan'"),
        ("a,x\n1,2\n", "no column 'y'"),
        ("y\n1\n2\n", "empty"),
        ('a,y\n"1,2\n', "not a CSV file"),
        ("a,y\n0,1\n0,2\n", "all inputs are zero"),
    ],
)
def test_malformed_csv(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(InputError, match=words):
        datasets.csv(tmp_path / "bad.csv", target="y")


def test_csv_wants_a_target(table: Path) -> None:
    with pytest.raises(InputError, match="data.target did not come"):
        datasets.csv(table)
    with pytest.raises(InputError, match=r"no column 'Y'.*Did you mean 'y'\?"):
        datasets.csv(table, target="Y", columns=("a",))


def test_npz_is_taken_as_it_is(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y, x_test, y_test = rng.normal(size=(9, 2)), rng.normal(size=9), rng.normal(size=(4, 2)), rng.normal(size=4)
    path = write_npz(tmp_path / "a.npz", x=x, y=y, x_test=x_test, y_test=y_test)
    arrays = datasets.npz(path)
    for ours, theirs in zip(arrays, (x, y, x_test, y_test), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert len(datasets.npz(path, n_test=0)) == 2 and len(datasets.npz(path, n=3)[0]) == 3
    scaled = datasets.npz(path, scale=True)
    assert np.linalg.norm(scaled[0], axis=1).max() == pytest.approx(1)
    np.testing.assert_allclose(scaled[2] * np.linalg.norm(x, axis=1).max(), x_test, rtol=1e-14)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": np.ones((2, 2))}, "wanted arrays x and y"),
        ({"x": np.ones((2, 2)), "y": np.ones(2), "x_test": np.ones((1, 2))}, "x_test and y_test"),
        ({"x": np.eye(2), "y": np.ones((2, 1))}, r"Type y\[:, 0\]"),
        ({"x": np.ones(2), "y": np.ones(2)}, r"Type x\[:, None\]"),
        ({"x": np.eye(3), "y": np.ones(2)}, "3 rows and y has 2"),
        ({"x": np.ones((0, 2)), "y": np.ones(0)}, "empty"),
        ({"x": np.array([["a"]]), "y": np.ones(1)}, "wanted real numbers"),
        ({"x": np.array([[None]], dtype=object), "y": np.ones(1)}, "Python objects"),
        ({"x": np.array([[1.0], [np.nan]]), "y": np.ones(2)}, "x holds nan in row 1"),
        ({"x": np.eye(2), "y": np.array([0.5, np.inf])}, "y holds inf in row 1"),
        ({"x": np.eye(2), "y": np.array([1.0, 1.0])}, "one class only"),
    ],
)
def test_malformed_npz(tmp_path: Path, arrays: dict[str, np.ndarray], words: str) -> None:
    path = write_npz(tmp_path / "bad.npz", **arrays)
    with pytest.raises(InputError, match=words):
        datasets.npz(path)


def test_files_that_are_not_npz(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "good.npz", x=np.eye(20), y=np.arange(20.0))
    content = path.read_bytes()
    np.save(tmp_path / "one.npy", np.eye(2))
    for name, raw in (("cut.npz", content[: len(content) // 2]), ("text.npz", b"x, y"), ("none.npz", b"")):
        (tmp_path / name).write_bytes(raw)
    for name in ("cut.npz", "text.npz", "none.npz", "one.npy"):
        with pytest.raises(InputError, match="not an npz file"):
            datasets.npz(tmp_path / name)


def test_mnist_files(images: Path) -> None:
    x, y = datasets.mnist(images, classes=(0, 2))
    assert x.shape == (8, 6) and sorted(y) == [-1.0] * 4 + [1.0] * 4
    by_file = datasets.mnist(images / "t10k-images-idx3-ubyte.gz", classes=(0, 2))
    np.testing.assert_array_equal(by_file[0], x)
    assert len(datasets.mnist(images, classes=(0, 2), n=5, n_test=3)[2]) == 3


def damage(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        raw = (folder / name).read_bytes()
        (folder / name).write_bytes(change(raw))

    return apply


IMAGES, LABELS = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("hurt", "words"),
    [
        (damage(IMAGES, lambda raw: raw[: len(raw) // 2]), "cut short or damaged"),
        (damage(IMAGES, lambda raw: gzip.compress(gzip.decompress(raw)[:-1])), "cut short: 87 bytes came, wanted 88"),
        (damage(LABELS, lambda raw: raw + b"\0"), "too long"),
        (damage(LABELS, lambda raw: raw[:6]), "cut short"),
        (damage(LABELS, lambda raw: b"\0\1" + raw[2:]), "not an IDX file: its first four bytes are 00 01 08 01"),
        (damage(LABELS, lambda raw: b""), "not an IDX file"),
        (damage(LABELS, lambda raw: idx(np.arange(5))), "as many images as labels"),
        (lambda folder: (folder / LABELS).unlink(), "no labels lie beside"),
        (lambda folder: (folder / IMAGES).unlink(), "no IDX images"),
    ],
)
def test_malformed_idx(images: Path, hurt: Callable[[Path], None], words: str) -> None:
    hurt(images)
    with pytest.raises(InputError, match=words):
        datasets.mnist(images, classes=(0, 2))


def test_idx_types(tmp_path: Path) -> None:
    from meanfield.readers import read_idx

    values = np.array([[1.5, -2.0], [3.0, 4.0]])
    for code, kind in ((0x0D, ">f4"), (0x0E, ">f8"), (0x0C, ">i4"), (0x0B, ">i2"), (0x09, "i1")):
        (tmp_path / "a").write_bytes(struct.pack(">BBBBII", 0, 0, code, 2, 2, 2) + values.astype(kind).tobytes())
        np.testing.assert_array_equal(read_idx(tmp_path / "a"), values.astype(kind))


# What makes the kernel singular


def test_sound_data_are_not_warned_of() -> None:
    rng = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert datasets.validate(rng.normal(size=(200, 3)), rng.normal(size=200)) == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (1.0, r"inputs 2 and 5 are equal: Lambda = 0 for every activation and Theorem 4\.4 does not apply"),
        (-1.0, "inputs 2 and 5 are opposite: without bias, Lambda = 0 for odd and even activations"),
        (0.3, "inputs 2 and 5 are parallel: without bias, Lambda = 0 for linear units, and for relu"),
        (-0.3, "inputs 2 and 5 are parallel"),
        (0.0, "input 5 is zero: without bias, Lambda = 0"),
    ],
)
def test_inputs_with_proportional_neurons_are_named(change: float, words: str) -> None:
    x = np.random.default_rng(0).normal(size=(8, 3))
    x[5] = change * x[2]
    with pytest.warns(UserWarning, match=words):
        (note,) = datasets.validate(x, np.arange(8.0))
    assert "Theorem 4.4 does not apply" in note


def test_every_pair_on_a_line_is_found_and_counted() -> None:
    x = np.array([[1.0, 2.0], [2.0, 4.0], [0.5, 1.0], [1.0, 2.0], [-1.0, -2.0], [3.0, 1.0]])
    with pytest.warns(UserWarning) as caught:
        notes = datasets.validate(x, np.arange(6.0))
    assert len(notes) == len(caught)
    assert "inputs 0 and 3 are equal:" in notes[0]
    assert any("are parallel" in note for note in notes)


def test_warnings_reach_the_notes(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz", x=np.array([[1.0, 0], [1, 0], [0, 1]]), y=np.array([0.1, 0.2, 0.3]))
    with pytest.warns(UserWarning, match="equal"):
        data = datasets.load(DataConfig(source="npz", path=path))
    assert "inputs 0 and 1 are equal" in data.notes[-1]


# Real files, where the checkout has them beside it


@pytest.mark.skipif(not REAL.is_dir(), reason="no folder of real data beside the checkout")
def test_real_files() -> None:
    x, y = datasets.mnist(REAL, classes=(4, 9), n=50)
    assert x.shape == (50, 784) and set(y) == {-1.0, 1.0}
    x, y = datasets.csv(REAL / "daily-min-temperatures.csv", target="Temp", lags=7, n=100)
    assert x.shape == (100, 7) and y[0] * 26.3 > 0
