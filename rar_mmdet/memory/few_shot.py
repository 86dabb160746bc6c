"""Few-shot classifiers in closed form on stored vectors: Tip-Adapter, Gaussian discriminant analysis, nearest images.

Letters: Q queries, N exemplars in C classes, V views of each, D channels. Queries, exemplars and text are unit vectors;
the text classifier's logits are 100 x·T, as OpenAI's CLIP has them. Results have the dtype of the vectors; half
precision is computed in single. There are no gradients. Everything is made from the formulas of the papers:

- Tip-Adapter: Zhang et al., ECCV 2022, equations 3 to 6.
- GDA: Wang et al., "A Hard-to-Beat Baseline for Training-free CLIP-based Adaptation", ICLR 2024, equations 4 to 7.
- Nearest images: RAR, section 3.2 (its row CLIP+KNN is the nearest image alone).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rar_mmdet.errors import FewShotError

__all__ = ["TEXT_SCALE", "GaussianClassifier", "fit_gda", "gda_logits", "nearest_labels", "tip_keys", "tip_logits"]

TEXT_SCALE = 100.0  # 1 / τ of OpenAI's CLIP; all of these papers write it out as 100

# Work on queries is cut into blocks whose largest array has this size (ours): a fraction of what all of them would
# take, and large enough that threads seldom wait for one another.
BLOCK_BYTES = 80 * 2**20

# Exemplars nearer to their class mean than this, as a share of their length and in the quadratic mean, are the same
# picture but for rounding (ours). Two photos, or two crops of one, differ by a few percent at least.
SAME_PICTURE = 1e-4

ROWS_AT_ONCE = 2048  # exemplars of one partial sum of squares; temporary arrays of 8 MB keep their memory


def tip_keys(views: Tensor) -> Tensor:
    """Tip-Adapter's keys: the unit vector of the mean over views of each exemplar's vector.

    Args:
        views: (V, N, D) vectors as the encoder gives them; views are averaged first and normalised after, so that
            views with longer vectors count more.

    Returns:
        (N, D) unit vectors.

    Raises:
        FewShotError: another shape, or an exemplar whose views cancel out or are not finite.
    """
    if not (isinstance(views, Tensor) and views.ndim == 3 and views.is_floating_point() and len(views)):
        raise FewShotError(f"tip_keys: views must be a (V, N, D) tensor of floats, V >= 1; got {_told(views)}")
    mean = _wide(views).mean(dim=0)
    length = mean.norm(dim=1)
    bad = ~(length.isfinite() & (length > 0))
    if bad.any():
        raise FewShotError(f"tip_keys: exemplar {_first(bad)}: its views are not finite or cancel out; encode it again")
    return (mean / length[:, None]).to(views.dtype)


@torch.no_grad()
def tip_logits(
    queries: Tensor, keys: Tensor, labels: Tensor, text_weights: Tensor, alpha: float, beta: float
) -> Tensor:
    """Tip-Adapter: 100 x·T + alpha Σ_n exp(-beta (1 - x·k_n)) [label n = c].

    A sum and not a mean: a class with more exemplars gets more. A class without exemplars keeps its text logit.

    The sum is taken class by class over the exemplars of each. The published form multiplies the (Q, N) matrix of
    exponentials with a (N, C) matrix of zeros and ones; neither is made here.

    Args:
        queries: (Q, D) unit vectors.
        keys: (N, D) unit vectors of the exemplars; see `tip_keys`.
        labels: (N,) whole numbers in [0, C).
        text_weights: (D, C) unit columns.
        alpha: weight of the exemplars, >= 0; 0 is the text classifier.
        beta: sharpness, >= 0.

    Returns:
        (Q, C) logits.

    Raises:
        FewShotError: shapes, labels or factors that do not fit; the message names the first.
    """
    _check_factors("tip_logits", alpha=alpha, beta=beta)
    num_classes = _check_text("tip_logits", queries, text_weights)
    labels = _check_exemplars("tip_logits", keys, labels, queries.shape[1], num_classes)
    logits = _text_logits(queries, text_weights)
    if alpha == 0 or not len(keys):
        return logits
    groups = equal_counts(labels, num_classes)
    work = _wide(queries)
    ordered = _wide(keys).to(work)[torch.cat([rows.flatten() for _, rows in groups])].T
    offset = work.new_full((), -float(beta))
    for block, space in _blocks(len(work), len(keys), work):
        close = torch.addmm(offset, work[block], ordered, alpha=float(beta), out=space).exp_()  # (q, N)
        start = 0
        for classes, rows in groups:
            shots, width = rows.shape
            own = close[:, start : start + shots * width].view(-1, shots, width).sum(dim=1)
            start += shots * width
            if width == num_classes:  # all classes have as many; they are in order
                logits[block].add_(own, alpha=alpha)
            else:
                logits[block].index_add_(1, classes, own.to(logits.dtype), alpha=alpha)
    return logits


@dataclass(frozen=True)
class GaussianClassifier:
    """Gaussian classes with one covariance: a linear classifier x·weight + bias."""

    means: Tensor  # (C, D): mu_c
    precision: Tensor  # (D, D): P, the shrunk inverse covariance; the identity where exemplars do not differ
    weight: Tensor  # (D, C): P mu_c
    bias: Tensor  # (C,): log(1 / C) - mu_c·P mu_c / 2
    is_nearest_mean: bool = False  # the exemplars have no spread, so P is the identity

    def __post_init__(self) -> None:
        classes, channels = self.means.shape
        shapes = {"precision": (channels, channels), "weight": (channels, classes), "bias": (classes,)}
        for name, shape in shapes.items():
            if tuple(getattr(self, name).shape) != shape:
                raise FewShotError(f"GaussianClassifier: {name} must be {shape}, got {_told(getattr(self, name))}")


def fit_gda(features: Tensor, labels: Tensor, num_classes: int) -> GaussianClassifier:
    """Fit the means and the one covariance of Gaussian classes, in closed form.

    S = Σ_c Σ (x - mu_c)(x - mu_c)ᵀ / (n - 1); P = D ((n - 1) S + tr(S) I)⁻¹, an empirical Bayes ridge estimate
    (equation 6); every class is as probable, however many exemplars it has. The matrix is positive definite as soon
    as S is not 0, so that it is solved by Cholesky's method, in float64, instead of by a pseudo-inverse.

    Where exemplars of one class do not differ (one each, or the same picture several times) S says nothing. A ridge
    of any size then points the same way: P is a multiple of the identity, and the class is the one of the nearest
    mean. P is the identity then. The published code gives back the text classifier for one exemplar per class
    (the pseudo-inverse of 0 is 0), and rounding noise for copies.

    Args:
        features: (n, D) unit vectors; every view of an exemplar is a row of its own.
        labels: (n,) whole numbers in [0, C).
        num_classes: C.

    Raises:
        FewShotError: shapes or labels that do not fit, vectors that are not finite, or a class without exemplars: it
            has no mean, and any number in its place would be an invention.
    """
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise FewShotError(f"fit_gda: num_classes={num_classes!r} must be a whole number of at least 1")
    if not (isinstance(features, Tensor) and features.ndim == 2 and features.is_floating_point()):
        raise FewShotError(f"fit_gda: features must be a (n, D) tensor of floats, got {_told(features)}")
    labels = _check_exemplars("fit_gda", features, labels, features.shape[1], num_classes)
    counts = torch.bincount(labels, minlength=num_classes)
    empty = (counts == 0).nonzero()[:, 0].tolist()
    if empty:
        named = ", ".join(map(str, empty[:5])) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
        raise FewShotError(
            f"fit_gda: no exemplar of class {named} (of {num_classes}); give each class at least one, or leave it out. "
            "Tip-Adapter and the text classifier work without"
        )
    num, channels = features.shape
    work = _wide(features)
    means = torch.zeros(num_classes, channels, dtype=torch.float64, device=work.device)
    for rows, own in zip(work.split(ROWS_AT_ONCE), labels.split(ROWS_AT_ONCE), strict=True):
        means.index_add_(0, own, rows.double())
    means /= counts[:, None]
    scatter = _scatter(work, labels, means)
    total = scatter.trace()
    tolerance = max(SAME_PICTURE, 8 * torch.finfo(features.dtype).eps) ** 2
    identity = torch.eye(channels, dtype=torch.float64, device=work.device)
    no_spread = bool(total <= tolerance * torch.linalg.vector_norm(work).double().square())
    if no_spread:
        precision = identity
    else:
        shrunk = scatter + total / (num - 1) * identity
        precision = channels * torch.cholesky_inverse(torch.linalg.cholesky(shrunk))
    weight = precision @ means.T
    bias = -torch.log(torch.tensor(float(num_classes), dtype=torch.float64)) - (means.T * weight).sum(dim=0) / 2
    dtype = features.dtype
    return GaussianClassifier(means.to(dtype), precision.to(dtype), weight.to(dtype), bias.to(dtype), no_spread)


def gda_logits(queries: Tensor, text_weights: Tensor, gda: GaussianClassifier, alpha: float) -> Tensor:
    """The text classifier and the Gaussian one together: 100 x·T + alpha (x·W + b).

    One matrix product: x·(100 T + alpha W) + alpha b.

    Args:
        queries: (Q, D) unit vectors.
        text_weights: (D, C) unit columns.
        gda: fitted by `fit_gda` for the same C classes.
        alpha: weight of the exemplars, >= 0; 0 is the text classifier.

    Returns:
        (Q, C) logits.

    Raises:
        FewShotError: shapes or factors that do not fit.
    """
    _check_factors("gda_logits", alpha=alpha)
    num_classes = _check_text("gda_logits", queries, text_weights)
    if tuple(gda.weight.shape) != (queries.shape[1], num_classes):
        raise FewShotError(
            f"gda_logits: the classifier is for {gda.weight.shape[1]} classes and {gda.weight.shape[0]} channels, the "
            f"text weights are {tuple(text_weights.shape)}; fit it on exemplars of the same classes and encoder"
        )
    if alpha == 0:
        return _text_logits(queries, text_weights)
    work = _wide(queries)
    both = TEXT_SCALE * text_weights.to(work) + alpha * gda.weight.to(work)
    return torch.addmm(alpha * gda.bias.to(work), work, both).to(queries.dtype)


@torch.no_grad()
def nearest_labels(queries: Tensor, exemplars: Tensor, labels: Tensor, depth: int) -> Tensor:
    """Labels of the exemplars with the largest inner products, best first; a label may stand there several times.

    Of equally near exemplars the earlier comes first. The first column is 1-NN, RAR's row CLIP+KNN.

    Args:
        queries: (Q, D) unit vectors.
        exemplars: (N, D) unit vectors.
        labels: (N,) whole numbers >= 0.
        depth: how many; all N where there are fewer. (The released code fills the list with the last label.)

    Returns:
        (Q, min(depth, N)) int64.

    Raises:
        FewShotError: shapes, labels or depth that do not fit, or no exemplars.
    """
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
        raise FewShotError(f"nearest_labels: depth={depth!r} must be a whole number of at least 1")
    _check_queries("nearest_labels", queries)
    labels = _check_exemplars("nearest_labels", exemplars, labels, queries.shape[1], None)
    if not len(exemplars):
        raise FewShotError("nearest_labels: there are no exemplars; give at least one")
    depth = min(depth, len(exemplars))
    work = _wide(queries)
    others = _wide(exemplars).to(work).T
    found = torch.empty(len(queries), depth, dtype=torch.int64, device=work.device)
    for block, space in _blocks(len(work), len(exemplars), work):
        found[block] = _first_best(torch.mm(work[block], others, out=space), depth)
    return labels[found]


def _first_best(similarity: Tensor, depth: int) -> Tensor:
    """(q, depth) columns of the largest entries of each row; of equal ones the earlier column comes first.

    `topk` says nothing about the order of equal entries, nor which of them are in; `max` gives the first.
    """
    if depth == 1:
        return similarity.max(dim=1, keepdim=True).indices
    values, columns = similarity.topk(depth, dim=1)
    columns = columns.sort(dim=1).values
    order = similarity.gather(1, columns).sort(dim=1, descending=True, stable=True).indices
    columns = columns.gather(1, order)
    cut = (similarity >= values[:, -1:]).sum(dim=1) > depth  # equal ones on both sides of the end
    if cut.any():
        columns[cut] = similarity[cut].sort(dim=1, descending=True, stable=True).indices[:, :depth]
    return columns


def _scatter(features: Tensor, labels: Tensor, means: Tensor) -> Tensor:
    """(D, D) float64: Σ (x - mu)(x - mu)ᵀ, parts of it in the features' dtype: their own rounding is no smaller."""
    channels = features.shape[1]
    total = torch.zeros(channels, channels, dtype=torch.float64, device=features.device)
    means = means.to(features.dtype)
    for rows, own in zip(features.split(ROWS_AT_ONCE), labels.split(ROWS_AT_ONCE), strict=True):
        apart = rows - means[own]
        total += apart.T @ apart
    return total


def equal_counts(labels: Tensor, num_classes: int) -> list[tuple[Tensor, Tensor]]:
    """Classes with equally many exemplars together: their ids (m,), and the exemplars' rows (count, m).

    There are at most about √(2N) different counts, so that a sum per group is few calls however uneven classes are.
    """
    counts = torch.bincount(labels, minlength=num_classes)
    rows = labels.argsort(stable=True)
    first = counts.cumsum(0) - counts
    groups = []
    for count in counts.unique().tolist():
        if count:
            classes = (counts == count).nonzero()[:, 0]
            places = first[classes] + torch.arange(count, device=labels.device)[:, None]
            groups.append((classes, rows[places]))
    return groups


def _blocks(num_rows: int, num_columns: int, like: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows of a (num_rows, num_columns) array, as many at a time as fit, and space for them: always the same."""
    step = min(max(1, BLOCK_BYTES // max(1, num_columns * like.element_size())), num_rows)
    space = like.new_empty(step, num_columns)
    for start in range(0, num_rows, max(1, step)):
        yield slice(start, start + step), space[: num_rows - start]


def _wide(values: Tensor) -> Tensor:
    """At least single precision, as stored rows one after another."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _text_logits(queries: Tensor, text_weights: Tensor) -> Tensor:
    work = _wide(queries)
    return (work @ text_weights.to(work)).mul_(TEXT_SCALE).to(queries.dtype)


def _finite_rows(vectors: Tensor) -> Tensor:
    """(N,) whether all numbers of a row are finite; the sum of a row tells, but for rows of huge numbers."""
    finite = vectors.sum(dim=1).isfinite()
    return finite if finite.all() else vectors.isfinite().all(dim=1)


def _told(value: object) -> str:
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else repr(value)[:60]


def _first(rows: Tensor) -> int:
    return int(rows.nonzero()[0])


def _check_factors(function: str, **factors: float) -> None:
    for name, value in factors.items():
        if not (0 <= value < float("inf")):
            raise FewShotError(f"{function}: {name}={value!r} must be a finite number >= 0")


def _check_queries(function: str, queries: Tensor) -> None:
    if not (isinstance(queries, Tensor) and queries.ndim == 2 and queries.is_floating_point()):
        raise FewShotError(f"{function}: queries must be a (Q, D) tensor of floats, got {_told(queries)}")
    finite = _finite_rows(queries)
    if not finite.all():
        raise FewShotError(f"{function}: query {_first(~finite)} holds a number that is not finite; encode it again")


def _check_text(function: str, queries: Tensor, text_weights: Tensor) -> int:
    """C, the number of classes."""
    _check_queries(function, queries)
    fits = isinstance(text_weights, Tensor) and text_weights.ndim == 2 and text_weights.is_floating_point()
    if not fits or len(text_weights) != queries.shape[1]:
        raise FewShotError(
            f"{function}: text_weights must be (D, C) = ({queries.shape[1]}, C), a column for each class, got "
            f"{_told(text_weights)}"
        )
    return text_weights.shape[1]


def _check_exemplars(
    function: str, exemplars: Tensor, labels: Tensor, channels: int, num_classes: int | None
) -> Tensor:
    """The labels as (N,) int64 on the device of the exemplars."""
    fits = isinstance(exemplars, Tensor) and exemplars.ndim == 2 and exemplars.is_floating_point()
    if not fits or exemplars.shape[1] != channels:
        raise FewShotError(f"{function}: exemplars must be (N, D) = (N, {channels}) floats, got {_told(exemplars)}")
    labels = torch.as_tensor(labels, device=exemplars.device)
    if not len(exemplars) and not labels.numel():
        labels = labels.new_zeros(0, dtype=torch.int64)  # an empty list is one of floats to torch
    if labels.is_floating_point() or labels.dtype == torch.bool or tuple(labels.shape) != (len(exemplars),):
        raise FewShotError(f"{function}: labels must be ({len(exemplars)},) whole numbers, got {_told(labels)}")
    labels = labels.long()
    top = num_classes if num_classes is not None else torch.iinfo(torch.int64).max
    outside = (labels < 0) | (labels >= top)
    if outside.any():
        row = _first(outside)
        raise FewShotError(
            f"{function}: labels[{row}]={int(labels[row])} is outside [0, {num_classes or 'number of classes'})"
        )
    finite = _finite_rows(exemplars)
    if not finite.all():
        raise FewShotError(f"{function}: exemplar {_first(~finite)} holds a number that is not finite; encode it again")
    return labels
