"""The tree as it is seen: nodes computed when they are looked at, and their open files.

Identities
    There is no object per node. A *kind* describes all nodes of one sort, such as the directories of all queues; one of
    them has a *key*, and what is declared in it (an attribute, a link) an *entry* number, 0 being the directory itself.
    A node is the three packed into one number, which is its inode number too. Nothing is allocated because somebody
    looked, and 65,536 queues cost what four cost.

    Keys of cards and queues are `apid << 16 | apqi`: a queue that comes back is the same node. Keys of what is created
    at run time are serial numbers, which are never used again.

    A directory acts upon a *subject*, the object that its attributes show and change. It is found from the key each
    time, and where there is none, there is no directory.

Lifetimes
    A node that is *lasting* is there as long as the directory that it is in: an attribute that every subject has, a
    subdirectory without conditions.

    A node that is *permanent* is lasting, and so is everything above it: it is always there.

    A node that *varies* must be asked again after a store, by whoever still has it: a directory whose link count
    changes with its subdirectories, or that is not permanent; and whatever somebody changed the permissions of, since a
    node that comes back has its first ones. Of files that go, stat may go on telling what it told.

    An open file ends with the node, for ever: `Tree.deactivate` is called wherever something goes away, before anything
    of the same name can come back.

Uevents
    No name appears or disappears without a uevent in the journal. Linux works like that: kobjects announce themselves,
    links and attributes of drivers come with `bind` and go with `unbind`. So the number of uevents is a version of all
    names: while it is the same, what was found out of any node is still true. More may be sent than necessary; none may
    be missing (`tests/model/test_names_and_uevents.py`). The one exception is the directory of files on their way to
    processes, `/ctl/fds`, which is no part of sysfs and counts its own changes.

From bottom to top: `openfile` and `entries` (what there is in a directory), `faults` and `attribute_file` (how
attributes are read and written), `members` (which directories of a kind exist), `kind`, `populations` and `directory`
(the kinds), `tree` (all of it, and the requests of a file system).
"""
