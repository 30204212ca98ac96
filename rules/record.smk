rule report:
    input:
        rules.tables_and_figures.input,
