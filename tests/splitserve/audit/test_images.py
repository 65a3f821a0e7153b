"""Pictures that nobody took: in range, all different, the same for the same seed."""

import numpy as np

from splitserve.audit.images import gaussian, procedural


def test_pictures_are_in_range_and_the_same_again():
    one = procedural(12, 24, 32, seed=3)
    assert one.shape == (12, 3, 24, 32)
    assert one.dtype == np.float32
    assert one.min() >= 0
    assert one.max() <= 1
    assert np.array_equal(one, procedural(12, 24, 32, seed=3))
    assert not np.array_equal(one, procedural(12, 24, 32, seed=4))
    assert len({picture.tobytes() for picture in one}) == 12


def test_their_spectrum_falls_like_that_of_photographs():
    """Power against frequency in octaves: natural pictures fall with a power of about 2."""
    made = procedural(64, 32, 32, seed=0).mean(axis=1)
    noise = gaussian(64, 32, 32, seed=0).mean(axis=1)
    assert 1.2 < fall(made) < 3.2
    assert abs(fall(noise)) < 0.3


def fall(pictures: np.ndarray) -> float:
    power = (np.abs(np.fft.fft2(pictures - pictures.mean(axis=(1, 2), keepdims=True))) ** 2).mean(0)
    fy, fx = np.fft.fftfreq(32)[:, None], np.fft.fftfreq(32)[None]
    radius = np.sqrt(fy**2 + fx**2)
    low = power[(radius > 0.06) & (radius < 0.12)].mean()
    high = power[(radius > 0.24) & (radius < 0.48)].mean()
    return float(np.log(low / high) / np.log(4))
