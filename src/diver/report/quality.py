"""Measures of images beside real ones, without training anything: functions of tensors, computed in float64."""

import torch
from torch import Tensor

# Bounds on what is held at once, in numbers: spectra of a part of the images, distances from a part of the points.
SPECTRA, DISTANCES = 2**22, 2**24
NEIGHBOURS = 5
# Distances come from dot products; a point that is as far as the radius may seem nearer by their rounding errors.
ROUNDING = 1e-9


def high_frequency_energy(images: Tensor) -> Tensor:
    """Share of each image's spectral energy beyond half of the Nyquist frequency, float64 [N] in [0, 1].

    images: float [N, C, H, W]. Each channel less its mean is transformed (2-D FFT); its share is the energy at
    frequencies further than 1/4 cycle per pixel from zero, over all of its energy; an image's is the mean over its
    channels. The range of the values does not matter: a channel times a factor plus a constant has the same share.
    A constant channel counts as 0.
    """
    rows, columns = (torch.fft.fftfreq(n, dtype=torch.float64, device=images.device) for n in images.shape[-2:])
    high = torch.hypot(rows[:, None], columns[None, :]) > 0.25
    parts = images.split(max(1, SPECTRA // images[0].numel()))
    return torch.cat([_share(part.double(), high) for part in parts])


def _share(images: Tensor, high: Tensor) -> Tensor:
    deviation = images - images.mean((-2, -1), keepdim=True)
    spectrum = torch.fft.fft2(deviation).abs().square()
    energy = spectrum.sum((-2, -1))
    # What is left of a constant channel is the rounding error of its mean.
    varies = deviation.abs().amax((-2, -1)) > 1e-12 * images.abs().amax((-2, -1))
    return torch.where(varies, (spectrum * high).sum((-2, -1)) / energy, 0.0).mean(1)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Fréchet distance, squared as in the FID, between normal distributions fitted to features [N, D] and [M, D].

        || mean(a) - mean(b) ||^2 + tr(A + B - 2 (A B)^(1/2)),  A, B: covariances with N - 1 and M - 1 below

    (Heusel et al. 2017). The eigenvalues of A B are those of the symmetric product A^(1/2) B A^(1/2), and the roots of
    these are the singular values of any factor of B times any factor of A. So with the triangular factors of the
    centred features the trace of the root is a sum of singular values: nothing is squared and nothing inverted, and
    fewer features than dimensions do no harm. They do bias the estimate, upward and the more the fewer there are:
    compare distances only between sets of equal size. Raises ValueError for fewer than two features.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"{len(a)} and {len(b)} features; a covariance needs two or more")
    (mean_a, root_a), (mean_b, root_b) = _normal_fit(a), _normal_fit(b)
    cross = torch.linalg.svdvals(root_a @ root_b.T).sum()
    spread = root_a.square().sum() + root_b.square().sum() - 2 * cross
    # Rounding may leave a little less than nothing between equal features.
    return max(0.0, float((mean_a - mean_b).square().sum() + spread))


def _normal_fit(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [D] and R [min(N, D), D] with R^T R the covariance."""
    points = features.double()
    mean = points.mean(0)
    _, triangular = torch.linalg.qr((points - mean) / (len(points) - 1) ** 0.5, mode="r")
    return mean, triangular


def neighbour_radii(real: Tensor, k: int = NEIGHBOURS) -> Tensor:
    """Distance of each real point [N, D] to its k-th nearest other one, float64 [N].

    Raises ValueError unless k is in 1..N-1.
    """
    if not 1 <= k < len(real):
        raise ValueError(f"k = {k}, but {len(real)} real points have {len(real) - 1} neighbours each")
    points = real.double() - real.double().mean(0)
    # The nearest of all is the point itself.
    return torch.cat([torch.cdist(part, points).kthvalue(k + 1).values for part in _parts(points, len(points))])


def coverage(real: Tensor, synthetic: Tensor, k: int = NEIGHBOURS, radii: Tensor | None = None) -> float:
    """Share of real points [N, D] that have a synthetic point [M, D] nearer than their k-th nearest real one.

    Diversity, in [0, 1] (Naeem et al. 2020). As M real points would lie in about k M of the N balls, compare it only
    between sets of equal size. radii: `neighbour_radii(real, k)`, when they are known.
    """
    return float((_points_in_balls(real, synthetic, k, radii) > 0).double().mean())


def density(real: Tensor, synthetic: Tensor, k: int = NEIGHBOURS, radii: Tensor | None = None) -> float:
    """Number of real points' balls (as in `coverage`) that a synthetic point lies in, mean over synthetic ones, over k.

    Fidelity (Naeem et al. 2020): 1 is expected of points distributed as the real ones, more of points where these are
    dense, 0 far from all of them.
    """
    return float(_points_in_balls(real, synthetic, k, radii).double().sum()) / (k * len(synthetic))


def _points_in_balls(real: Tensor, synthetic: Tensor, k: int, radii: Tensor | None) -> Tensor:
    """Number of synthetic points in the open ball of each real point, int64 [N]."""
    bounds = (neighbour_radii(real, k) if radii is None else radii) * (1 - ROUNDING)
    centre = real.double().mean(0)
    points, others = real.double() - centre, synthetic.double() - centre
    counts = [
        (torch.cdist(part, others) < bound[:, None]).sum(1)
        for part, bound in zip(_parts(points, len(others)), _parts(bounds, len(others)), strict=True)
    ]
    return torch.cat(counts)


def _parts(rows: Tensor, columns: int) -> tuple[Tensor, ...]:
    """Rows in parts whose distances to so many columns can be held at once."""
    return rows.split(max(1, DISTANCES // columns))
