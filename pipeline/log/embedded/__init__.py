"""The event log in files: no service, several processes of one machine at once.

    <folder>/<topic>/meta.json                 format version and number of partitions
                     lock                      held around every commit, so that writers take turns
                     state                     shared memory: the durable end of the journal
                     <number>.segment          frames, one after the other; one frame is one group of appends
                     groups/<group>/members/   one locked file per live member
                                    <n>.offset locked by the member that holds partition n; what the group committed

All partitions of a topic share one journal, so that one fdatasync makes a group of appends durable whatever the
number of partitions. Readers stop at the durable end, hence never see what a power failure could take back.
"""

from pipeline.log.embedded.log import EmbeddedLog, open_embedded

__all__ = ["EmbeddedLog", "open_embedded"]
