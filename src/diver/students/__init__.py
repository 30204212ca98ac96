"""Students: networks trained on a distilled set and tested on real images."""

from diver.students.evaluate import evaluate_set
from diver.students.protocol import StudentProtocol, StudentResult
from diver.students.train import StudentError, train_students

__all__ = ["StudentError", "StudentProtocol", "StudentResult", "evaluate_set", "train_students"]
