"""``python -m gwi_celery.doctor URL...``"""

import sys

from gwi_celery.doctor import main

if __name__ == "__main__":
    sys.exit(main())
