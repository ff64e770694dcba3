"""``python -m layermanager.daemon`` prints the OpenAPI document of the daemon."""

import json
import sys

from layermanager.daemon.resources import openapi_document

json.dump(openapi_document(), sys.stdout, indent=2)
sys.stdout.write("\n")
