"""Distil a teacher into a student: python train_student.py --help"""

import sys

from fastkd.cli.train import main

if __name__ == "__main__":
    sys.exit(main("student", "train_student.py"))
