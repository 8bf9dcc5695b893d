//! Finding and executing the program, in the container and as its user.

use std::{ffi::CString, io};

use protocol::{Process, StartStage};
use rustix::{fs::access, io::Errno};

use crate::{
    failure::{At, Failure},
    sys::{self, StringArray},
};

/// Where programs are looked for when the environment has no `PATH`.
const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program with its arguments and environment, ready to be executed.
pub struct Program {
    args: StringArray,
    env: StringArray,
    candidates: Vec<CString>,
}

impl Program {
    /// Takes them from `process`, and `HOME` from the user where the environment has none.
    ///
    /// # Errors
    ///
    /// At [`StartStage::Exec`] with `EINVAL` for a string with a NUL in it, or `ENOENT` without any
    /// argument.
    pub fn new(process: &Process, home: &str) -> Result<Self, Failure> {
        let subject = process.args.first().map_or("", String::as_str);
        let args = StringArray::new(process.args.iter().map(String::as_bytes));
        let home = format!("HOME={home}");
        let has_home = process
            .env
            .iter()
            .any(|variable| variable.starts_with("HOME="));
        let added = (!has_home).then_some(home.as_bytes());
        let env = StringArray::new(process.env.iter().map(String::as_bytes).chain(added));
        let env = env.at(StartStage::Exec, subject)?;
        let candidates = candidates(subject, path(&process.env)).at(StartStage::Exec, subject)?;
        Ok(Self {
            args: args.at(StartStage::Exec, subject)?,
            env,
            candidates,
        })
    }

    /// Becomes the program; returns only when that failed.
    ///
    /// As execvp(3), the search goes on past candidates that are absent or may not be executed, and
    /// of the errors a refusal is the one to report.
    pub fn execute(&self) -> Failure {
        let mut failed = None;
        for candidate in &self.candidates {
            let error = sys::execve(candidate, &self.args, &self.env);
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
            // Absent, or there but for its interpreter.
            let absent = matches!(errno, Errno::NOENT | Errno::NOTDIR)
                && access(candidate, rustix::fs::Access::EXISTS).is_err();
            if absent {
                continue;
            }
            let end = !matches!(errno, Errno::ACCESS | Errno::NOENT);
            if end || failed.is_none() {
                failed = Some((error, candidate));
            }
            if end {
                break;
            }
        }
        let program = self
            .args
            .strings()
            .first()
            .map(|program| program.to_string_lossy());
        let (error, subject) = match failed {
            Some((error, candidate)) => (error, candidate.to_string_lossy()),
            None => (
                io::Error::from_raw_os_error(libc::ENOENT),
                program.unwrap_or_default(),
            ),
        };
        Failure {
            stage: StartStage::Exec,
            errno: error.raw_os_error().unwrap_or(0),
            subject: subject.into_owned(),
        }
    }
}

fn path(env: &[String]) -> &[u8] {
    let path = env
        .iter()
        .rev()
        .find_map(|variable| variable.strip_prefix("PATH="));
    path.map_or(DEFAULT_PATH, str::as_bytes)
}

/// The paths at which `program` may be: itself where it has a slash, else in the folders of `path`,
/// of which an empty one is the working directory.
fn candidates(program: &str, path: &[u8]) -> io::Result<Vec<CString>> {
    if program.is_empty() {
        return Ok(Vec::new());
    }
    if program.contains('/') {
        return Ok(vec![CString::new(program)?]);
    }
    let folders = path.split(|byte| *byte == b':');
    let paths = folders.map(|folder| match folder {
        b"" => CString::new(program),
        folder => CString::new([folder, b"/", program.as_bytes()].concat()),
    });
    Ok(paths.collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(program: &str, path: &str) -> Vec<String> {
        let found = candidates(program, path.as_bytes()).unwrap();
        found
            .into_iter()
            .map(|path| path.into_string().unwrap())
            .collect()
    }

    #[test]
    fn a_program_without_a_slash_is_looked_up_in_order() {
        assert_eq!(paths("sh", "/usr/bin:/bin"), ["/usr/bin/sh", "/bin/sh"]);
        assert_eq!(paths("sh", "/bin::rel"), ["/bin/sh", "sh", "rel/sh"]);
    }

    #[test]
    fn a_program_with_a_slash_is_not_looked_up() {
        assert_eq!(paths("/bin/sh", "/usr/bin"), ["/bin/sh"]);
        assert_eq!(paths("./run", "/usr/bin"), ["./run"]);
        assert_eq!(paths("", "/usr/bin"), Vec::<String>::new());
    }

    #[test]
    fn the_last_path_of_the_environment_counts() {
        let env = [
            "PATH=/a".to_owned(),
            "XPATH=/b".to_owned(),
            "PATH=/c".to_owned(),
        ];
        assert_eq!(path(&env), b"/c");
        assert_eq!(path(&[]), DEFAULT_PATH);
    }

    fn process(program: &str, path: &str) -> Process {
        Process {
            args: vec![program.to_owned()],
            env: vec![format!("PATH={path}")],
            cwd: "/".to_owned(),
            user: String::new(),
            additional_groups: vec![],
            terminal: None,
            capabilities: protocol::Capabilities(0),
            no_new_privileges: false,
            rlimits: vec![],
            init: false,
        }
    }

    /// Only for programs that cannot be executed: success would replace the test.
    fn failure(program: &str, path: &str) -> (i32, String) {
        let failure = Program::new(&process(program, path), "/")
            .unwrap()
            .execute();
        assert_eq!(failure.stage, StartStage::Exec);
        (failure.errno, failure.subject)
    }

    #[test]
    fn what_cannot_be_executed_says_why() {
        use std::{fs, os::unix::fs::PermissionsExt};
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, content: &str, mode: u32| {
            let path = folder.path().join(name);
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let data = put("data", "text", 0o644);
        let orphan = put("orphan", "#!/nonexistent/interpreter\n", 0o755);
        let format = put("format", "no program\n", 0o755);
        let here = folder.path().to_str().unwrap();
        let path = format!("/nonexistent:{here}");

        assert_eq!(
            failure("nosuch", &path),
            (libc::ENOENT, "nosuch".to_owned())
        );
        assert_eq!(
            failure("/nosuch", &path),
            (libc::ENOENT, "/nosuch".to_owned())
        );
        assert_eq!(failure("data", &path), (libc::EACCES, data.clone()));
        assert_eq!(failure("orphan", &path), (libc::ENOENT, orphan));
        assert_eq!(failure("format", &path), (libc::ENOEXEC, format));
        assert_eq!(failure(here, &path), (libc::EACCES, here.to_owned()));
        let below = format!("{data}/below");
        assert_eq!(failure(&below, &path), (libc::ENOENT, below.clone()));
    }

    #[test]
    fn a_nul_in_an_argument_is_refused() {
        let failure = Program::new(&process("a\0b", "/bin"), "/").err().unwrap();
        assert_eq!(
            (failure.stage, failure.errno),
            (StartStage::Exec, libc::EINVAL)
        );
    }
}
