from tests.settings import *  # noqa

RUN_CANCEL_STALLED_SECONDS = 60
