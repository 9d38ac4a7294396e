"""Floor 2: files. Spec sections 2 to 5, 8 and 11.

    source.py     bytes of a file, by mapping or by pread
    document.py   canonical MessagePack
    names.py      names of tensors and tasks
    tensors.py    lists of tensors (names, dtypes, shapes, digests) as tables
    index.py      the index as a model, and its bytes
    parse.py      the bytes of an index, checked
    checks.py     what it must say of tasks, entries and segments
    check_shared.py  what it must say of shared arrays, the router and tables of coefficients
    report.py     where a failed check goes
    frame.py      prologue and trailer
    reader.py     an open file: index, and segments verified on first touch
    writer.py     a file in one pass
    digest.py     entry digests and the content id
    verify.py     a report of everything that is wrong with a file
    segments.py   encoded entries on their way between files

A check that fails goes through `Report`: a reader raises the first failure, the validator collects them.
"""
