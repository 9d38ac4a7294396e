"""TALL masks of other people, read without running anything of theirs, and written as theirs are.

    reading    a file or folder of masks of any known kind -> its tasks
    masks      the masks of one task, and windows of their bits
    pickles    what a pickle says, by an interpreter of our own
    building   the arrays that a pickle may make
    archive    the members of a file of torch.save, as views
    npy        mask files as np.save writes them
    layout     where tensors lie in the vector that masks are of
    exporting  the masks of a .tsw file -> such a file

What a file is, its bytes say, not its name.
"""
