"""What a Python program is told while its run goes on, and three callbacks that pass it on.

    fedgmr_hpc.run("digits", callbacks=[CsvLines("digits.csv"), EarlyStop()])

`contract` says what a callback can see and do, `teller` tells the callbacks of a run. `csv_lines`,
`tensorboard` and `weights_and_biases` have one callback each.
"""
