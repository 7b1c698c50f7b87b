"""python -m marshtest: the command line."""

import sys
from pathlib import Path

if not sys.flags.safe_path:  # `-m` puts the working folder first, where a torch.py may lie
    del sys.path[0]
    sys.path.append(str(Path(__file__).parents[1]))  # which may be where marshtest itself was found

from marshtest.cli.app import main

main()
