"""Settings of the stage-1 methods."""

from typing import Literal, Self

from pydantic import Field, model_validator

from diver.config.base import Model, Seed

# Values of `encoder` that are not paths.
PIXELS, TEACHER = "pixels", "teacher"
# Settings that name a trained network: a file, or the study's teacher.
NETWORKS = ("encoder", "teacher", "attention")
# Methods that choose real images by their features.
CORESETS = ("herding", "k_center", "k_means")


class DistillConfig(Model):
    """Settings that every stage-1 method has."""

    seed: Seed = Field(1, description="Seed of the method.")


class RandomConfig(DistillConfig):
    """Real training images, drawn per class without replacement."""


class Augmented(DistillConfig):
    """What methods share that augment images."""

    augmentation: str = Field(
        "color_crop_cutout_flip_scale_rotate", description="DSA families, joined by '_'; 'none' switches it off."
    )


class Networks(Augmented):
    """What methods share that make ConvNets."""

    width: int = Field(128, ge=1, description="Width of the ConvNets.")
    depth: int = Field(3, ge=1, description="Depth of the ConvNets: 3 at 32 pixels, 4 at 64, 5 at 128.")


class LearnedImages(Augmented):
    """What methods share that learn images by stochastic gradient descent."""

    init: Literal["noise", "real"] = Field("real", description="Start from unit-normal noise or from real images.")
    iterations: int = Field(1000, ge=1, description="Updates of the images.")
    learning_rate: float = Field(1.0, gt=0, description="Learning rate of the images (SGD).")
    momentum: float = Field(0.5, ge=0, lt=1, description="Momentum of the images' updates.")


class DMConfig(LearnedImages, Networks):
    """Distribution matching; each iteration draws a fresh random network. The start is that of PReDD's sets."""

    init: Literal["noise", "real"] = Field("noise", description="Start from unit-normal noise or from real images.")
    batch_real: int = Field(256, ge=1, description="Real images per class and iteration.")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="Arithmetic of the real images' pass, which takes nearly all of the time."
    )


# Rounds of matching per network, and epochs of training it between two of them, by IPC (dataset condensation's code).
DC_LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}


class DCConfig(LearnedImages, Networks):
    """Gradient matching (dataset condensation); each iteration goes through the training of a fresh network."""

    init: Literal["noise", "real"] = Field("noise", description="Start from unit-normal noise or from real images.")
    iterations: int = Field(1000, ge=1, description="Networks; each brings `outer` updates of the images.")
    extra_network: bool = Field(False, description="Quirk: go through one network more, as the released code does.")
    learning_rate: float = Field(0.1, gt=0, description="Learning rate of the images (SGD).")
    augmentation: str = Field("none", description="DSA families, joined by '_'; 'none' switches it off.")
    batch_real: int = Field(256, ge=1, description="Real images per class and round.")
    outer: int | None = Field(None, ge=1, description="Rounds of matching per network; none: the paper's for the IPC.")
    inner: int | None = Field(None, ge=0, description="Epochs of training between rounds; none: the paper's.")
    network_rate: float = Field(0.01, gt=0, description="Learning rate of the networks (SGD without momentum).")
    batch_train: int = Field(256, ge=1, description="Images per step of the networks' training.")
    distance: Literal["channels", "mse", "cos"] = Field(
        "channels",
        description="Distance of gradients: 1 - cosine, summed over the output channels of all weights; or of all "
        "parameters as one vector the squared distance (mse) or 1 - cosine (cos).",
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="Arithmetic of the real images' passes, which take nearly all of the time at IPC 1."
    )

    def loops(self, ipc: int) -> tuple[int, int]:
        """(outer, inner) for an IPC: as set, else the paper's of the largest IPC that is not above."""
        outer, inner = DC_LOOPS[max(known for known in DC_LOOPS if known <= ipc)]
        return self.outer or outer, inner if self.inner is None else self.inner


class DSAConfig(DCConfig):
    """Gradient matching with siamese augmentation."""

    init: Literal["noise", "real"] = Field("real", description="Start from unit-normal noise or from real images.")
    augmentation: str = Field(
        "color_crop_cutout_flip_scale_rotate", description="DSA families, joined by '_'; 'none' switches it off."
    )


class ExpertsConfig(Networks):
    """Networks trained on all images, whose weights after each epoch are what trajectory matching matches."""

    count: int = Field(100, ge=1, description="Experts.")
    epochs: int = Field(50, ge=1, description="Epochs of each.")
    learning_rate: float = Field(0.01, gt=0, description="Learning rate.")
    momentum: float = Field(0.0, ge=0, lt=1, description="Momentum.")
    weight_decay: float = Field(0.0, ge=0, description="Weight decay.")
    batch: int = Field(256, ge=1, description="Images per step.")
    optimizer: Literal["sgd", "gsam"] = Field("sgd", description="SGD, or GSAM on it (EDF).")
    rho: float = Field(0.01, gt=0, description="GSAM's radius.")
    adaptive: bool = Field(
        False, description="GSAM's radius is of parameters in units of their size, as EDF's released code has it."
    )
    alpha: float = Field(0.3, ge=0, description="GSAM's weight of the orthogonal part.")
    zca: bool = Field(False, description="Train on ZCA-whitened images.")
    zca_epsilon: float = Field(0.1, gt=0, description="Added to the covariance's eigenvalues.")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="Arithmetic of the convolutions.")


class MTTConfig(LearnedImages):
    """Trajectory matching. The networks are those of the experts."""

    experts: str = Field("", description="Experts of the study, by name, or a folder that `diver experts` made.")
    iterations: int = Field(5000, ge=1, description="Updates of the images.")
    learning_rate: float = Field(1000.0, gt=0, description="Learning rate of the images (SGD).")
    syn_steps: int = Field(20, ge=1, description="Steps of the student on the synthetic images (N).")
    expert_epochs: int = Field(3, ge=1, description="Epochs of the expert that they are to match (M).")
    max_start: int = Field(25, ge=1, description="Student starts before this epoch of the expert (T+).")
    syn_rate: float = Field(0.01, gt=0, description="Learning rate of the student at the start; it is learned.")
    rate_rate: float = Field(1e-5, ge=0, description="Learning rate of the student's learning rate; 0 keeps it fixed.")
    batch_syn: int | None = Field(None, ge=1, description="Synthetic images per student step; none: all.")
    gradient: Literal["adjoint", "unrolled", "truncated"] = Field(
        "adjoint",
        description="adjoint: exact, in memory that does not grow with the steps; unrolled: the same by one graph; "
        "truncated: TESLA's, which leaves out how a step's images change later steps.",
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="Arithmetic of the students' convolutions.")


class EDFConfig(MTTConfig):
    """Trajectory matching with emphasis on discriminative features (EDF), soft labels and a growing start window."""

    init: Literal["real"] = Field("real", description="Start from real images that an expert classifies correctly.")
    iterations: int = Field(10000, ge=1, description="Updates of the images.")
    syn_steps: int = Field(40, ge=1, description="Steps of the student on the synthetic images (N).")
    expert_epochs: int = Field(2, ge=1, description="Epochs of the expert that they are to match (M).")
    max_start: int = Field(
        20, ge=1, description="Student starts before this epoch of the expert once the window has grown."
    )
    first_max_start: int = Field(10, ge=1, description="Student starts before this epoch in the first iteration.")
    min_start: int = Field(0, ge=0, description="Student starts at this epoch at the earliest.")
    expansion_end: int = Field(1000, ge=1, description="Iteration at which the window has grown.")
    label_rate: float = Field(2.0, ge=0, description="Learning rate of the label logits (momentum 0.9); 0 fixes them.")
    dropped: float = Field(0.25, ge=0, lt=1, description="Common Pattern Dropout: share of smallest errors left out.")
    interval: int = Field(100, ge=1, description="Iterations between new activation maps.")
    beta: float = Field(
        1.0,
        ge=0,
        description="Discriminative Area Enhancement: gradients are multiplied by activation + beta where it counts.",
    )
    act_threshold: float = Field(0.0, ge=0, le=1, description="Activation that counts as discriminative; 0: the mean.")
    attention: str = Field(
        "experts",
        description="Network of the activation maps: 'experts' (the last epoch of one), 'imagenet' (timm's ResNet-18), "
        "'teacher' (the study's), a file of `diver teach`, or 'none'.",
    )
    map_samples: int = Field(4, ge=1, description="Noisy copies of an image that its activation map averages over.")
    map_noise: float = Field(0.3, ge=0, description="Deviation of their noise, in standardised images.")
    threshold: float = Field(1.5, gt=0, description="Iterations with a larger loss change nothing.")
    ema_decay: float = Field(0.9995, ge=0, lt=1, description="Decay of the averaged images that are returned; 0: last.")

    @model_validator(mode="after")
    def _window(self) -> Self:
        if not self.min_start < self.first_max_start <= self.max_start:
            raise ValueError(
                f"min_start = {self.min_start}, first_max_start = {self.first_max_start}, max_start = {self.max_start} "
                "make no growing window; the first must be below the second, and that not above the last"
            )
        return self


class SRe2LConfig(DistillConfig):
    """Images that a trained network recognises, with its batch statistics (squeeze, recover)."""

    teacher: str = Field(
        TEACHER,
        min_length=1,
        description="Network, with BatchNorm: 'teacher' (the study's), a file of `diver teach`, or 'timm:NAME'.",
    )
    iterations: int = Field(4000, ge=1, description="Updates of the images (Adam, cosine).")
    learning_rate: float = Field(0.25, gt=0, description="Learning rate.")
    batch: int = Field(100, ge=1, description="Images optimised together, at most.")
    r_bn: float = Field(0.01, ge=0, description="Weight of the distance of batch statistics.")
    first_bn: float = Field(10.0, ge=0, description="Factor of the first layer's distance.")
    crop: bool = Field(True, description="Random resized crops, as in training on ImageNet; off: whole images.")
    min_scale: float = Field(0.08, gt=0, le=1, description="Smallest area of a crop, as a share of the image.")
    flip: bool = Field(True, description="Random flips.")
    jitter: int = Field(32, ge=0, description="Largest shift, rolled around, in pixels.")
    views: Literal["shared", "own"] = Field(
        "shared",
        description="shared: one crop, flip and shift for all images of a batch, as the released code draws them; "
        "own: one for each image.",
    )
    tv: float = Field(0.0, ge=0, description="Weight of total variation.")
    l2: float = Field(0.0, ge=0, description="Weight of the images' norm, which is not squared.")
    clip: bool = Field(True, description="Hold pixels within those of real images after each update.")
    one_sided: bool = Field(
        False, description="Quirk: shifts go down and to the right only, as the released code's for ImageNet and CIFAR."
    )
    rounding: Literal["none", "released"] = Field(
        "none", description="released: pixels cut to 8 bits and coded as JPEG, as the released sets are."
    )


class RDEDConfig(DistillConfig):
    """Crops of real images that a trained network finds most realistic, put together in grids."""

    teacher: str = Field(
        TEACHER,
        min_length=1,
        description="Network: 'teacher' (the study's), a file of `diver teach`, or 'timm:NAME'.",
    )
    candidates: int = Field(300, ge=1, description="Images of a class that are looked at; all, if it has fewer.")
    crops: int = Field(5, ge=1, description="Crops of each.")
    factor: int = Field(2, ge=1, description="Crops along a side of a distilled image.")
    min_scale: float = Field(0.08, gt=0, le=1, description="Smallest area of a crop, as a share of the image.")
    rounding: Literal["none", "released"] = Field(
        "none", description="released: pixels cut to 8 bits and coded as JPEG, as the released sets are."
    )


class CoresetConfig(DistillConfig):
    """Real training images, chosen per class by their features under a fixed encoder."""

    encoder: str = Field(
        PIXELS,
        min_length=1,
        description="Where features come from: 'pixels' (standardised), 'teacher' (the study's), or the path of a "
        "trained network's file.",
    )


class ReleasedConfig(DistillConfig):
    """A set that others have released. `seed` has no effect."""

    path: str = Field("", description="The released file or folder. It is read without running any code in it.")
    form: Literal["auto", "dc", "mtt", "ncfm", "glad", "folder", "ddranking", "dcbench", "own"] = Field(
        "auto", description="Its form, as `diver forms` lists them; auto tells it from the path."
    )
    value_range: Literal["auto", "dataset", "unit", "symmetric"] = Field(
        "auto",
        description="What its numbers mean: standardised as the form's codes do the dataset, [0, 1] or [-1, 1]; auto "
        "takes what the form stores, else what the values fit.",
    )
    factor: int | None = Field(
        None,
        ge=1,
        description="Cut each image into factor x factor tiles and enlarge them, as NCFM does in training.",
    )
    size: int | None = Field(
        None, ge=1, description="Resize the images to so many pixels, which have to be the dataset's (bilinear)."
    )
    class_order: tuple[str, ...] | None = Field(
        None,
        description="The class that each label, or each of the sorted folders, means, if not the dataset's.",
    )


SETTINGS: dict[str, type[DistillConfig]] = {
    "random": RandomConfig,
    "herding": CoresetConfig,
    "k_center": CoresetConfig,
    "k_means": CoresetConfig,
    "dm": DMConfig,
    "dc": DCConfig,
    "dsa": DSAConfig,
    "mtt": MTTConfig,
    "edf": EDFConfig,
    "sre2l": SRe2LConfig,
    "rded": RDEDConfig,
    "released": ReleasedConfig,
}
