"""Does a real Firestore keep what the store relies on? As ``python -m gwi_celery.doctor``.

python docs/check_firestore.py firestore://my-project            # or ?database=my-database
python docs/check_firestore.py --seconds 30 firestore://my-project
"""

import sys

from gwi_celery.doctor import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
