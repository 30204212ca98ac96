"""Students: networks trained on a distilled set and tested on real images."""

from diver.students.evaluate import (
    adopt_teacher,
    answer_set,
    check_set,
    evaluate_full,
    evaluate_set,
    set_data,
    train_teacher,
    white_epsilon,
    write_rows,
)
from diver.students.inputs import StudentData, StudentError
from diver.students.protocol import StudentProtocol, StudentResult, student_protocol
from diver.students.replay import Replay, ReplayError, record_answers
from diver.students.train import train_students
from diver.students.trial import smallest_batch, try_network

__all__ = [
    "Replay",
    "ReplayError",
    "StudentData",
    "StudentError",
    "StudentProtocol",
    "StudentResult",
    "adopt_teacher",
    "answer_set",
    "check_set",
    "evaluate_full",
    "evaluate_set",
    "record_answers",
    "set_data",
    "smallest_batch",
    "student_protocol",
    "train_students",
    "train_teacher",
    "try_network",
    "white_epsilon",
    "write_rows",
]
