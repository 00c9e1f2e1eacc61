//! Rollback of a file: it gets an earlier content of the same length again, which only its version tells from the one before.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use super::action::{Action, Bytes, How, OWN, Path, Way};
use super::judge::Verdict;
use super::model::{Area, Id, Model};
use super::world::World;

/// Name beside a file, of what takes its place.
const BESIDE: &str = "old";

impl World {
    /// Rolls a file back; whoever opens it after that is shown that content, and handles keep what they have.
    pub(super) fn roll_back(&mut self, model: &mut Model, client: usize, path: &Path, way: Way) -> Verdict {
        let node = model.walk(path, false, &mut Vec::new()).expect("it is there").node.expect("it is there");
        let earlier = match same_length_before(model, node) {
            Some(earlier) => earlier,
            None => {
                let earlier = Bytes::Version(node, model.nodes[node].version());
                self.overwrite(model, client, path, other_of_same_length(model, node))?;
                earlier
            }
        };
        match way {
            Way::Rename => {
                let mut beside = path.clone();
                *beside.last_mut().expect("a name") = BESIDE;
                self.overwrite(model, client, &beside, earlier)?;
                self.act(model, client, &Action::Rename(beside, path.clone()))?;
            }
            Way::Behind => self.store_behind(model, node, earlier),
        }
        for reader in 0..self.agents.len() {
            let opened = Action::Open(OWN, path.clone(), How { reads: true, ..How::default() });
            for action in [opened, Action::Fstat(OWN), Action::Read(OWN), Action::Close(OWN)] {
                self.act(model, reader, &action)?;
            }
        }
        Ok(())
    }

    fn overwrite(&mut self, model: &mut Model, client: usize, path: &Path, bytes: Bytes) -> Verdict {
        let how = How { writes: true, create: true, truncate: true, ..How::default() };
        let actions = [Action::Open(OWN, path.clone(), how), Action::Write(OWN, 0, bytes), Action::Close(OWN)];
        actions.iter().try_for_each(|action| self.act(model, client, action))
    }

    /// Stores a content in the under-storage, behind the back of the cluster, which is told that something has changed.
    fn store_behind(&mut self, model: &mut Model, node: Id, bytes: Bytes) {
        let content = bytes.get(model);
        let path = model.path_of(node).expect("it is there");
        let key = self.key(&path);
        let storage = match model.nodes[node].area {
            Area::S3 => {
                self.on.block_on(self.site.bucket.write(&key, content.clone())).expect("stored");
                "s3"
            }
            _ => {
                let (beside, there) = (self.site.local.join(BESIDE), self.site.local.join(&key));
                std::fs::write(&beside, &content).expect("written");
                std::fs::set_permissions(&beside, Permissions::from_mode(model.nodes[node].mode)).expect("chmod");
                std::fs::rename(&beside, &there).expect("it takes its place");
                "local"
            }
        };
        self.site.ctl_ok(&["fs", "refresh", &format!("/{storage}/{key}")]);
        model.nodes[node].versions.push(content);
    }
}

/// The last content that a file had before, of the length that it has now.
fn same_length_before(model: &Model, node: Id) -> Option<Bytes> {
    let (one, newest) = (&model.nodes[node], model.nodes[node].newest());
    let is_other = |version: &usize| one.versions[*version].len() == newest.len() && one.versions[*version] != *newest;
    (0..one.version()).rev().find(is_other).map(|version| Bytes::Version(node, version))
}

fn other_of_same_length(model: &Model, node: Id) -> Bytes {
    let length = model.nodes[node].newest().len();
    let salts = (1..).map(|salt| Bytes::Fresh { length, salt });
    salts.into_iter().find(|other| other.get(model) != *model.nodes[node].newest()).expect("there are many")
}
