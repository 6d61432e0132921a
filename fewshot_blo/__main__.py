"""``python -m fewshot_blo`` is the command ``fewshot-blo``."""

from __future__ import annotations

import sys

from fewshot_blo.commands.main import main

sys.exit(main())
