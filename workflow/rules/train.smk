# The grid: each run is a job of its own.


rule data:
    """One data set: its official files, downloaded if absent, checked by md5, and converted for training once."""
    output:
        multiext("data/ready/{dataset}/", "images.npy", "labels.npy"),
    log:
        "data/ready/{dataset}.log",
    conda:
        "../../envs/train.yaml"
    resources:
        mem_mb=3000,
        runtime=60,
    shell:
        'python -m rankcollapse data {wildcards.dataset} --data-dir "$DATA_DIR" $NO_DOWNLOAD 2>&1 | tee {log:q} >&2'


rule train:
    """One run. It is trained again when its identity changes, its knobs or the code that trains, and for nothing else."""
    input:
        # Not for its time: a set converted anew is the same set.
        ancient(multiext("data/ready/{dataset}/", "images.npy", "labels.npy")),
    output:
        multiext(
            f"{RESULTS}/runs/{grid.NAME}/",
            "config.json",
            "checkpoint.pt",
            "metrics.csv",
            "spectra.npz",
            "alignment.csv",
            "run.json",
        ),
    log:
        f"{RESULTS}/logs/train/{grid.NAME}.log",
    benchmark:
        f"{RESULTS}/benchmarks/train/{grid.NAME}.tsv"
    conda:
        "../../envs/train.yaml"
    threads: GRID.threads
    resources:
        gpu=int(ON_GPU),
        mem_mb=lambda wildcards: planned(wildcards).study.cost.mem_mb,
        # Wall time to ask of a cluster, minutes: three times the estimate, for the device of its nodes.
        runtime=lambda wildcards: 10 + round(planned(wildcards).seconds(DEVICE) / 20),
    params:
        identity=lambda wildcards: grid.identity(planned(wildcards).config),
    shell:
        f"python -m rankcollapse train {PLAN} --run {RUN} --identity {{params.identity}} --out {RESULTS}/runs/{RUN}"
        " --threads {threads} 2>&1 | tee {log:q} >&2"
