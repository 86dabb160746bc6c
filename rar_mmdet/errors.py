"""The errors a user can meet. Every message says what was given, what was expected and what to do."""

__all__ = [
    "AnnotationFileError",
    "CategoryTreeError",
    "CheckpointError",
    "ConfigError",
    "DatasetError",
    "DetectionError",
    "DetectorLoadError",
    "EncoderLoadError",
    "FewShotError",
    "HostError",
    "ImageReadError",
    "InferenceOnlyError",
    "InvalidBoxError",
    "MemoryMismatchError",
    "MetricConfigError",
    "MetricNameError",
    "MissingAssetError",
    "RankerError",
    "RankerLoadError",
    "RarError",
    "RecordFileError",
    "RemovedKeyError",
    "RepeatedIdError",
    "ResultFileError",
    "UnknownCategoryError",
    "UnknownImageError",
    "VocabularyError",
]


class RarError(Exception):
    """Base class: everything a user can cause and mend."""


class ConfigError(RarError, ValueError):
    """A config names a component or a key that does not exist, or values that do not fit together."""


class InferenceOnlyError(RarError, NotImplementedError):
    """Training was asked of a model that only predicts."""


class HostError(RarError, ImportError):
    """A package of the host is missing, out of the supported range or built without its ops."""


class MissingAssetError(RarError, FileNotFoundError):
    """A dataset, checkpoint or vocabulary file is not where the config says."""


class ImageReadError(RarError, OSError):
    """An image is missing, damaged, too large, or of a shape or range that is no photo."""


class InvalidBoxError(RarError, ValueError):
    """A box is no four numbers, not finite, empty, inverted or outside its image."""


class VocabularyError(RarError, ValueError):
    """Category names are missing, empty or of the wrong kind."""


class CheckpointError(RarError, RuntimeError):
    """A file of a model is damaged or not what it should be."""


class EncoderLoadError(CheckpointError):
    """An encoder could not be loaded completely."""


class DetectorLoadError(CheckpointError):
    """A detector could not be loaded completely, or is of a kind that gives no boxes."""


class MemoryMismatchError(RarError, ValueError):
    """A memory on disk was made by another encoder, template set or vocabulary, or is damaged."""


class RankerLoadError(CheckpointError):
    """A ranker's model could not be loaded completely, or does not fit the device."""


class RankerError(RarError, RuntimeError):
    """A ranker failed while running: the server is gone, or too many replies were unusable."""


class UnknownImageError(RarError, ValueError):
    """A detection is of an image that the annotations do not have."""


class UnknownCategoryError(RarError, ValueError):
    """Detections name categories the annotations have under ids of another type."""


class AnnotationFileError(RarError, ValueError):
    """An annotation file lacks something the chosen protocol needs."""


class RepeatedIdError(AnnotationFileError, AssertionError):
    """Annotations share an id (MMDetection's datasets raise an AssertionError here)."""


class ResultFileError(RarError, ValueError):
    """A result file is truncated, not a result file, or holds a record that cannot be scored."""


class CategoryTreeError(RarError, ValueError):
    """A category tree is not in a format this project reads, or does not fit the annotations."""


class MetricConfigError(RarError, AssertionError):
    """Keys of a metric contradict one another (the stock metrics raise an AssertionError here)."""


class MetricNameError(RarError, KeyError):
    """A metric or a number of it that does not exist (the stock metrics raise a KeyError here)."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would put the sentence into quotes


class RemovedKeyError(RarError, RuntimeError):
    """A key that MMDetection removed (the stock metrics raise a RuntimeError here)."""


class DetectionError(RarError, ValueError):
    """A detector gave a score or box that is not a finite number, a label outside the vocabulary, or no mask."""


class RecordFileError(RarError, ValueError):
    """A file of region records is missing, cut off or holds something else."""


class FewShotError(RarError, ValueError):
    """Exemplars, labels and text do not fit together, or a class has none where it needs some."""


class DatasetError(RarError, ValueError):
    """A classification data set is damaged, incomplete or not laid out as its reader expects."""
