# A package that brings its own builder is installed from its directory: nothing is fetched.
mkdir -p package/greet/data
cat > package/pyproject.toml <<'END'
[build-system]
requires = []
build-backend = "builder"
backend-path = ["."]
[project]
name = "greet"
version = "1.0"
END
cat > package/builder.py <<'END'
import os
import zipfile

ABOUT = {
    "METADATA": "Metadata-Version: 2.1\nName: greet\nVersion: 1.0\n",
    "WHEEL": "Wheel-Version: 1.0\nGenerator: builder\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "entry_points.txt": "[console_scripts]\ngreet = greet:main\n",
    "RECORD": "",
}


def build_wheel(directory, config_settings=None, metadata_directory=None):
    name = "greet-1.0-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(directory, name), "w") as wheel:
        for at, _, files in os.walk("greet"):
            for file in files:
                wheel.write(os.path.join(at, file))
        for file, text in ABOUT.items():
            wheel.writestr("greet-1.0.dist-info/" + file, text)
    return name
END
cat > package/greet/__init__.py <<'END'
from importlib.resources import files


def main():
    print(files(__name__).joinpath("data/text").read_text(), end="")
END
echo hello > package/greet/data/text
export PIP_NO_INDEX=1 PIP_NO_CACHE_DIR=1 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

if [ "$STORAGE" = s3 ]; then
    # On 64 bits an environment begins with a link.
    refused 1 "Error: [Errno 95] Operation not supported: 'lib' -> '$HERE/env/lib64'" python3 -m venv env
    python3 -m pip install --target site ./package
    test "$(PYTHONPATH=site python3 -c 'import greet; greet.main()')" = hello
    echo again > package/greet/data/text
    python3 -m pip install --upgrade --target site ./package
    test "$(PYTHONPATH="$THERE/site" python3 -c 'import greet; greet.main()')" = again
else
    python3 -m venv env
    env/bin/pip install ./package
    env/bin/pip check
    test "$(env/bin/greet)" = hello
    test "$("$THERE/env/bin/python" -c 'import greet; greet.main()')" = hello
    echo again > package/greet/data/text
    env/bin/pip install --force-reinstall ./package
    test "$(env/bin/greet)" = again
    env/bin/pip uninstall --yes greet
    refused 1 "No module named 'greet'" env/bin/python -c 'import greet'
    test ! -e env/bin/greet
fi
