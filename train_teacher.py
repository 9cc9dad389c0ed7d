"""Train a teacher (or any net, with labels alone): python train_teacher.py --help"""

import sys

from fastkd.cli.train import main

if __name__ == "__main__":
    sys.exit(main("teacher", "train_teacher.py"))
