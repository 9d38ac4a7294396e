"""What `tsw validate` is made of, from the names on the command line to a report and an exit code.

    targets.py      what was named -> the files to check, each once, in order
    checker.py      one file -> Result, never an exception
    pool.py         many files, in order, in this process or in several
    result.py       Result, Status, Tally, and the line that people read
    writer.py       the interface of all report writers
    text_report.py, json_report.py, sarif_report.py, junit_report.py    one writer each, all pure: results -> text
    channel.py      a writer and the place where its text goes

Results stream: they are written as they come, in the order of the files, and then forgotten (JUnit has its counts in front,
so that one report is kept until the end).
"""
