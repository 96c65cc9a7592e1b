"""The errors of gtp-fast and their exit codes. A message says what was seen, what was expected and what to do."""

from __future__ import annotations


class GtpError(Exception):
    """An error that a user can act on; the command line prints it and exits with `exit_code`."""

    exit_code = 1


class UsageError(GtpError):
    """A flag, name or value that cannot be used."""

    exit_code = 2


class ForeignFileError(UsageError, OSError):
    """A link, a pipe, a directory or an oversized file where a run has a file of its own.

    It is an OSError, too: who does without a file that cannot be read does without this one.
    """


class DataError(GtpError):
    """A data set that is missing, damaged or of another kind than expected."""

    exit_code = 3


class DivergedError(GtpError):
    """A value of the run was not finite."""

    exit_code = 4


class CheckpointError(GtpError):
    """No usable checkpoint: it is missing, altered, truncated or of another run."""

    exit_code = 5


class BusyError(GtpError):
    """Another process holds the run directory or the data set."""

    exit_code = 6


class DiskError(GtpError):
    """The disk refused a write that the run needs."""

    exit_code = 7


class OutOfMemoryError(GtpError):
    """The run needs more memory than the device has, by the estimate or in fact."""

    exit_code = 8
