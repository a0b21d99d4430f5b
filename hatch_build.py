"""What a built package says of where it lives: its addresses, and links of the README that work outside the repository.

The address is that of REGARD_HOME, such as https://github.com/OWNER/NAME, which `.github/workflows/release.yml` sets to
the repository that it runs in. Without it there are no addresses, and links stay as they are.
"""

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class Addresses(MetadataHookInterface):
    """`readme` and `urls`."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Fill them in."""
        home, version = os.environ.get("REGARD_HOME", "").rstrip("/"), metadata["version"]
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["urls"] = {}
        if home:
            text = re.sub(r"(!\[[^]]*\]\()(?!https?:)", rf"\1{home}/raw/v{version}/", text)
            text = re.sub(r"(?<!!)(\[[^]]*\]\()(?!https?:|#)", rf"\1{home}/blob/v{version}/", text)
            metadata["urls"] = {
                "Homepage": home,
                "Issues": f"{home}/issues",
                "Changelog": f"{home}/blob/v{version}/CHANGELOG.md",
            }
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
