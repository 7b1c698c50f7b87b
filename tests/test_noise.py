"""The written noise: its moments, its exchangeability, its scalings."""

import numpy as np
import pytest
from scipy import stats

from marshtest.kit.noise import Noise, Scaling, clipped_moments
from marshtest.plumbing.errors import MarshtestError


def noise_of(variance: float = 1.0, pixels: bool = True, **scaling: tuple[float, ...]) -> Noise:
    return Noise(seed=5, variance=variance, scaling=Scaling(**scaling), pixels=pixels)


@pytest.mark.parametrize("sigma", [0.2, 3.0, 60.0])
def test_moments_are_those_of_rounding_and_clipping(sigma: float) -> None:
    """Against numerical integration over the normal density."""
    mean, variance = clipped_moments(sigma)
    z = np.linspace(-9, 9, 2_000_001)
    weight = stats.norm.pdf(z) * (z[1] - z[0])
    for level in (0, 3, 128, 254):
        written = np.clip(np.rint(level + sigma * z), 0, 255) - level
        expected = (written * weight).sum()
        assert mean[level] == pytest.approx(expected, abs=1e-4 * sigma)
        second = ((written - expected) ** 2 * weight).sum()
        assert variance[level] == pytest.approx(second, rel=1e-3, abs=1e-6)


def test_black_pixels_keep_the_variance_of_half_a_normal() -> None:
    mean, variance = clipped_moments(40.0)
    assert mean[0] == pytest.approx(40 / np.sqrt(2 * np.pi), rel=0.01)
    assert variance[0] == pytest.approx(40**2 * (0.5 - 0.5 / np.pi), rel=0.01)
    assert variance[128] == pytest.approx(40**2 + 1 / 12, rel=0.01)  # rounding adds a twelfth


def test_written_pixels_have_the_stated_moments() -> None:
    noise = noise_of(0.3, std=(0.25,))
    value = np.array([[[0, 40, 128, 250]]], np.uint8)
    drawn = noise.fresh(value, 7, 200_000).astype(float) - value
    mean, variance = noise.moments(value)
    for place in range(4):
        column = drawn[:, 0, 0, place]
        error = np.sqrt(variance[0, 0, place] / len(column))
        assert column.mean() == pytest.approx(mean[0, 0, place], abs=4 * error)
        assert column.var() == pytest.approx(variance[0, 0, place], rel=0.03)


def test_own_and_fresh_noise_have_one_distribution_and_are_functions_of_seed_and_id() -> None:
    noise, value = noise_of(0.1), np.full((3, 8, 8), 100, np.uint8)
    own = np.stack([noise.written(value, i) for i in range(300)]).ravel()
    fresh = np.concatenate([noise.fresh(value, i, 1) for i in range(300)]).ravel()
    assert stats.ks_2samp(own, fresh).pvalue > 1e-3
    assert (noise.written(value, 3) == noise.written(value, 3)).all()
    assert (noise.written(value, 3) != noise.written(value, 4)).any()
    assert (noise.written(value, 3) != noise.fresh(value, 3, 1)[0]).any()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_are_neither_rounded_nor_clipped(dtype: type[np.floating]) -> None:
    noise = noise_of(4.0, pixels=False)
    value = np.full((50_000,), -3.0, dtype)
    written = noise.written(value, 0)
    assert written.dtype == dtype
    assert (written - value).astype(float).std() == pytest.approx(2.0, rel=0.02)
    mean, variance = noise.moments(value)
    assert (mean == 0).all()
    assert (variance == 4).all()


def test_each_channel_has_its_own_deviation_wherever_it_stands() -> None:
    noise = noise_of(1.0, mean=(0.5, 0.5, 0.5), std=(0.1, 0.2, 0.4))
    first = noise.deviation((3, 8, 8))
    last = noise.deviation((8, 8, 3))
    assert np.allclose(first[:, 0, 0], [25.5, 51, 102])
    assert np.allclose(last[0, 0], [25.5, 51, 102])
    with pytest.raises(MarshtestError, match="3 channels do not fit samples of shape"):
        noise.deviation((1, 28, 28))


@pytest.mark.parametrize("shape", [(3, 6, 5), (6, 5, 3), (1, 6, 5), (6, 5)])
def test_measured_scaling_normalises_each_channel(shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(1).integers(0, 256, (40, *shape), dtype=np.uint8)
    scaling = Scaling.measured(list(images))
    count = 3 if 3 in (shape[0], shape[-1]) else 1
    assert len(scaling.mean) == count
    scaled = (images / 255 - scaling.along(scaling.mean, shape)) / scaling.along(scaling.std, shape)
    assert abs(scaled.mean()) < 1e-3
    assert scaled.std() == pytest.approx(1, abs=1e-3)


def test_scalings_are_read_from_text() -> None:
    assert Scaling.of("unit", "here") == Scaling()
    assert Scaling.of("pixels", "here").std == (1 / 255,)
    assert Scaling.of("0.5,0.4/0.2,0.1", "here") == Scaling(mean=(0.5, 0.4), std=(0.2, 0.1))
    for bad in ("", "0.5", "0.5/0", "1,2/3", "a/b", "nan/1", "0/inf/1"):
        with pytest.raises(MarshtestError, match="--scaling: must be unit, pixels, or MEAN"):
            Scaling.of(bad, "--scaling")
