"""Metrics: the Fréchet distance against closed forms, the classifier on real digits, copies and noise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from suffuse.data import Data, Spec
from suffuse.errors import ConfigError, DataError
from suffuse.frechet import frechet
from suffuse_image.data import MNIST, Digits
from suffuse_image.data.pictures import Pictures
from suffuse_image.features import stack, train
from suffuse_image.metrics import FeatureMetrics, nearest


def fitted(mean: torch.Tensor, covariance: torch.Tensor, count: int = 200) -> torch.Tensor:
    """Rows whose sample mean and unbiased covariance are exactly those given."""
    x = torch.randn(count, len(mean), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = torch.linalg.qr(x - x.mean(0)).Q * (count - 1) ** 0.5
    return mean + x @ torch.linalg.cholesky(covariance).T


def test_distance_of_commuting_gaussians() -> None:
    a = fitted(torch.tensor([1.0, 0.0, -2.0]), torch.diag(torch.tensor([1.0, 4.0, 9.0]).double()))
    b = fitted(torch.tensor([0.0, 0.0, 1.0]), torch.diag(torch.tensor([4.0, 4.0, 0.25]).double()))
    assert frechet(a, b) == pytest.approx(10 + 1 + 0 + 6.25, rel=1e-12)
    assert frechet(a, a + 2) == pytest.approx(12, rel=1e-12)
    assert frechet(a, a) == pytest.approx(0, abs=1e-12)


def test_distance_of_general_gaussians() -> None:
    random = torch.Generator().manual_seed(1)
    roots = [torch.randn(5, 5, dtype=torch.float64, generator=random) for _ in range(2)]
    first, second = (root @ root.T + 0.1 * torch.eye(5) for root in roots)
    zero = torch.zeros(5, dtype=torch.float64)
    eigenvalues = torch.linalg.eigvals(first @ second).real
    wanted = (first.trace() + second.trace() - 2 * eigenvalues.sqrt().sum()).item()
    found = frechet(fitted(zero, first), fitted(zero, second, 60))
    assert found == pytest.approx(wanted, rel=1e-10)
    assert frechet(fitted(zero, second, 60), fitted(zero, first)) == pytest.approx(found, rel=1e-10)


def test_distance_with_fewer_rows_than_features() -> None:
    a = torch.zeros(4, 50).double()
    a[:, 0] = torch.tensor([-1.0, 1.0, -1.0, 1.0]).double() * 0.75**0.5  # variance 1 along one axis
    b = torch.zeros(9, 50).double()
    b[:, 1] = torch.tensor([-2.0, 2.0, 0.0] * 3).double() * (8 / 24) ** 0.5  # variance 1 along another
    assert frechet(a, b) == pytest.approx(2, rel=1e-12)


def test_distance_refuses_what_has_no_answer() -> None:
    with pytest.raises(ValueError, match="two rows"):
        frechet(torch.zeros(1, 3), torch.zeros(5, 3))
    with pytest.raises(ValueError, match="not finite"):
        frechet(torch.full((4, 3), torch.nan), torch.zeros(5, 3))


def test_nearest() -> None:
    among = torch.tensor([[10, 10], [200, 200]], dtype=torch.uint8)[:, None, None]
    x = torch.tensor([[10, 10], [13, 14], [200, 197]], dtype=torch.uint8)[:, None, None]
    wanted = sorted([0.0, (12.5**0.5) / 255, (4.5**0.5) / 255])[1]
    assert nearest(x, among) == pytest.approx(wanted, rel=1e-5)


@pytest.fixture(scope="module")
def digits() -> Digits:
    data = Digits()
    data.setup()
    return data


@pytest.fixture(scope="module")
def metrics() -> FeatureMetrics:
    return FeatureMetrics()


def taken(split: Pictures, count: int, first: int = 0) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    items = [split[i] for i in range(first, first + count)]
    return torch.stack([i["x"] for i in items]), {"label": torch.tensor([i["cond"]["label"] for i in items])}


def test_held_out_pictures_are_the_best_samples(digits: Digits, metrics: FeatureMetrics) -> None:
    found = metrics(*taken(digits.val, 355), digits)
    assert found["agreement_real"] >= 0.97 and found["agreement"] == pytest.approx(found["agreement_real"], abs=1e-9)
    assert found["frechet"] == pytest.approx(0, abs=1e-6) and found["frechet_real"] > 0.01
    assert found["nn_train_ratio"] == pytest.approx(1, abs=1e-6)


def test_copies_noise_and_wrong_classes_show(digits: Digits, metrics: FeatureMetrics) -> None:
    x, cond = taken(digits.train, 300)
    copied = metrics(x, cond, digits)
    assert copied["nn_train_ratio"] < 0.01 and copied["agreement"] > 0.99
    assert copied["frechet"] < 3 * copied["frechet_real"]
    wrong = metrics(x, {"label": (cond["label"] + 1) % 10}, digits)
    assert wrong["agreement"] < 0.01 and wrong["frechet"] == copied["frechet"]
    noise = metrics(torch.rand(x.shape, generator=torch.Generator().manual_seed(0)), cond, digits)
    assert noise["frechet"] > 20 * noise["frechet_real"] and noise["nn_train_ratio"] > 1.2
    one = metrics(x[cond["label"] == 3], {"label": cond["label"][cond["label"] == 3]}, digits)
    assert one["frechet"] > 10 * one["frechet_real"]  # a collapsed model agrees, and is told apart here


def test_the_asked_class_may_be_missing(digits: Digits, metrics: FeatureMetrics) -> None:
    x, cond = taken(digits.val, 50)
    label = cond["label"].clone()
    label[::2] = -1
    assert "agreement" not in metrics(x, {"label": torch.full((50,), -1)}, digits)
    assert metrics(x, {"label": label}, digits)["agreement"] > 0.9
    assert "agreement" not in metrics(x, {}, digits)


def test_the_network_is_a_function_of_its_seed(digits: Digits) -> None:
    x = stack(lambda i: digits.train[i]["x"], 200)
    first, second, third = (train(x, digits.train.labels[:200], 10, 10, seed) for seed in (0, 0, 1))
    assert torch.equal(first.read(x)[0], second.read(x)[0])
    assert not torch.equal(first.read(x)[0], third.read(x)[0])


class Blobs(Data):
    """Soft spots, without classes."""

    def setup(self) -> None:
        self.train, self.val = Pictures(self.draw(0, 150)), Pictures(self.draw(1, 80))

    def draw(self, seed: int, count: int) -> torch.Tensor:
        centre = torch.rand(count, 2, 1, generator=torch.Generator().manual_seed(seed)) * 80 + 8
        line = torch.arange(96.0)
        spread = torch.exp(-(line - centre).square() / 128)
        spots = spread[:, 0, :, None] * spread[:, 1, None, :]
        return (255 * spots).round().to(torch.uint8)[:, None].expand(-1, 3, -1, -1)


def test_without_classes() -> None:
    data = Blobs()
    data.setup()
    assert data.spec == Spec()
    metrics = FeatureMetrics(cache=False)
    good = metrics(data.draw(2, 100).float() / 255, {}, data)
    bad = metrics(torch.rand(100, 3, 96, 96, generator=torch.Generator().manual_seed(0)), {}, data)
    assert set(good) == {"frechet", "frechet_real", "nn_train_ratio"}
    assert good["frechet"] < 4 * good["frechet_real"] and bad["frechet"] > 20 * good["frechet"]
    assert 0.5 < good["nn_train_ratio"] < 2 and metrics(data.draw(2, 100).float() / 255, {}, data) == good


def test_errors_name_the_key(tmp_path: Path, digits: Digits, metrics: FeatureMetrics) -> None:
    with pytest.raises(ConfigError, match=r"metrics.train_steps=0 must be"):
        FeatureMetrics(train_steps=0)
    with pytest.raises(ConfigError, match=r"metrics.inception=.*none.pth: no such file"):
        FeatureMetrics(inception=str(tmp_path / "none.pth"))
    with pytest.raises(DataError, match="raise metrics_num"):
        metrics(torch.rand(1, 1, 8, 8), {}, digits)
    with pytest.raises(DataError, match=r"samples are \(1, 9, 9\), data \(1, 8, 8\)"):
        metrics(torch.rand(5, 1, 9, 9), {}, digits)


@pytest.mark.slow
def test_mnist_classifier(real: Path) -> None:
    data = MNIST(str(real))
    data.setup()
    metrics = FeatureMetrics()
    rows = torch.randperm(10000, generator=torch.Generator().manual_seed(0))[:500]
    x = torch.stack([data.val[int(i)]["x"] for i in rows])
    found = metrics(x, {"label": data.val.labels[rows]}, data)
    assert found["agreement_real"] >= 0.985 and found["agreement"] >= 0.97
