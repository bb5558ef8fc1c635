# minigpt for the CPU. Your texts and runs are in the folder that you give it as /data:
#   docker build -t minigpt .
#   docker run --rm -it -v "$PWD":/data minigpt train my.txt
#   docker run --rm -p 127.0.0.1:8000:8000 -e MINIGPT_API_KEY -v "$PWD":/data minigpt serve --host 0.0.0.0
FROM python:3.11-slim

# g++ compiles the fast kernels at their first use, and what torch.compile writes; without it both are left out.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

# torch comes first, in a layer of its own, so that a change of the code does not fetch it again.
WORKDIR /minigpt
COPY constraints.txt ./
RUN pip install --no-cache-dir torch -c constraints.txt --extra-index-url https://download.pytorch.org/whl/cpu

COPY pyproject.toml README.md LICENSE ./
COPY minigpt minigpt
COPY recipes recipes
RUN pip install --no-cache-dir ".[plot,serve]" -c constraints.txt

RUN useradd --create-home --uid 1000 minigpt && mkdir /data && chown minigpt /data
USER minigpt
WORKDIR /data
EXPOSE 8000
ENTRYPOINT ["minigpt"]
CMD ["--help"]
