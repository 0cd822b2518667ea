"""When this process began to import the package: sources younger than that may not be what it runs."""

import time

AT = time.time()
