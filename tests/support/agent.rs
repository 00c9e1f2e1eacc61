//! A client of a mount in a process of its own. What a test opens itself is inherited for a moment by every process that is
//! started meanwhile; it closes what it inherits, and with that stores it. What an agent has open only the agent closes.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

const PROGRAM: &str = include_str!("agent.py");

/// The process; it ends with this.
pub struct Agent {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub errno: i32,
    /// The call that failed, where one command makes several.
    pub at: String,
    /// The file, if it was open by then.
    pub inode: Option<u64>,
}

pub fn encode(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

pub fn decode(value: &Value) -> Vec<u8> {
    STANDARD.decode(value.as_str().expect("bytes")).expect("base64")
}

impl Agent {
    pub fn start() -> Agent {
        let mut command = Command::new("python3");
        command.args(["-c", PROGRAM]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("python3");
        let (to, from) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        Agent { child, to, from: BufReader::new(from) }
    }

    /// Number of the process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Has something done: a verb of `agent.py` and its arguments.
    pub fn call(&mut self, command: &Value) -> Result<Value, Refusal> {
        self.begin(command);
        self.finish(command)
    }

    /// Has something begun; [`Agent::finish`] waits for what comes of it.
    pub fn begin(&mut self, command: &Value) {
        let mut line = command.to_string();
        line.push('\n');
        self.to.write_all(line.as_bytes()).expect("it listens");
    }

    /// What came of the command that was begun.
    pub fn finish(&mut self, command: &Value) -> Result<Value, Refusal> {
        let mut answer = String::new();
        self.from.read_line(&mut answer).expect("it answers");
        let mut answer: Value = serde_json::from_str(&answer).unwrap_or_else(|_| panic!("it has died of {command}"));
        match answer["errno"].as_i64() {
            None => Ok(answer["done"].take()),
            Some(errno) => Err(Refusal {
                errno: i32::try_from(errno).expect("an errno"),
                at: answer["at"].as_str().unwrap_or_default().to_owned(),
                inode: answer["inode"].as_u64(),
            }),
        }
    }

    /// Reads a whole file.
    pub fn get(&mut self, path: &std::path::Path) -> Result<Vec<u8>, Refusal> {
        self.call(&json!(["get", path])).map(|bytes| decode(&bytes))
    }

    /// Writes a whole file, in pieces of one write each. The inode.
    pub fn put(&mut self, path: &std::path::Path, pieces: &[&[u8]]) -> Result<u64, Refusal> {
        let pieces: Vec<String> = pieces.iter().map(|piece| encode(piece)).collect();
        self.call(&json!(["put", path, pieces])).map(|done| done["inode"].as_u64().expect("an inode"))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill().and_then(|()| self.child.wait());
    }
}
