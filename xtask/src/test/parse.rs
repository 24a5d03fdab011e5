//! Reads the counts from the output of cargo test and of csi-sanity (ginkgo).

/// What a suite said.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Tests that passed and did something.
    pub passed: usize,
    /// Tests that failed, and suites that died.
    pub failed: usize,
    /// `name: reason` of each test that skipped itself.
    pub skipped: Vec<String>,
    /// Specs of csi-sanity that are for other kinds of driver.
    pub not_applicable: usize,
    /// The names of what failed.
    pub failures: Vec<String>,
    /// What failed tests said when they gave up, each line with the test's name.
    pub why: Vec<String>,
}

/// Lines of one test's last words.
const WORDS: usize = 20;

impl Count {
    /// Adds another one to this.
    pub fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.not_applicable += other.not_applicable;
        self.skipped.extend(other.skipped.iter().cloned());
        self.failures.extend(other.failures.iter().cloned());
        self.why.extend(other.why.iter().cloned());
    }

    fn fail(&mut self, what: String) {
        self.failed += 1;
        self.failures.push(what);
    }
}

/// Takes a suite's output line by line.
#[derive(Debug, Default)]
pub struct Parser {
    count: Count,
    /// What cargo said it would run next.
    binary: String,
    /// Between `running N tests` and `test result:`, with the number of skips before it.
    running: Option<usize>,
    /// Whether any result was seen.
    results: bool,
    /// In libtest's list of what failed: whose output this is, and how many lines of its last words were
    /// kept.
    failed: Option<(String, Option<usize>)>,
    /// Whether that list has begun.
    list: bool,
}

impl Parser {
    /// One line without its end.
    pub fn line(&mut self, line: &str) {
        self.last_words(line);
        let line = line.trim_start();
        if let Some(binary) = line.strip_prefix("Running ").or_else(|| line.strip_prefix("Doc-tests ")) {
            self.died();
            self.binary = binary.to_owned();
        } else if is_start(line) {
            self.died();
            self.running = Some(self.count.skipped.len());
        } else if let Some(skip) = line.strip_prefix("SKIPPED ") {
            // A test may print this twice: when it happens, and in libtest's list of what passing tests
            // printed.
            let before = self.running.unwrap_or(self.count.skipped.len());
            if !self.count.skipped.iter().skip(before).any(|s| s == skip) {
                self.count.skipped.push(skip.to_owned());
            }
        } else if let Some(result) = line.strip_prefix("test result: ") {
            self.cargo_result(result);
        } else if line.contains(" Passed | ") && line.contains(" Failed | ") {
            self.ginkgo_result(line);
        } else if let Some(name) = line.strip_prefix("test ").and_then(|l| l.strip_suffix(" ... FAILED")) {
            self.count.failures.push(name.to_owned());
        } else if let Some(name) = line.strip_prefix("[FAIL] ").or_else(|| line.strip_prefix("[It] [FAIL] "))
        {
            self.count.failures.push(name.to_owned());
        }
    }

    /// What a failed test panicked with, out of libtest's list: without what it printed before and without
    /// the backtrace.
    fn last_words(&mut self, line: &str) {
        let header = line.strip_prefix("---- ").and_then(|l| l.strip_suffix(" stdout ----"));
        if line == "failures:" || line.starts_with("test result: ") {
            self.list = line == "failures:";
            self.failed = None;
        } else if let Some(name) = header.filter(|_| self.list) {
            self.failed = Some((name.to_owned(), None));
        } else if let Some((name, kept)) = &mut self.failed {
            if line.contains(" panicked at ") && kept.is_none() {
                *kept = Some(0);
            } else if line.starts_with("stack backtrace:") || line.starts_with("note: ") {
                *kept = kept.map(|_| WORDS);
            }
            if let Some(lines) = kept.as_mut().filter(|lines| **lines < WORDS) {
                self.count.why.push(format!("{name}: {line}"));
                *lines += 1;
            }
        }
    }

    /// `ok. 3 passed; 0 failed; 1 ignored; 0 measured; …`
    fn cargo_result(&mut self, result: &str) {
        let number = |what: &str| number_before(result, what);
        let all = self.count.skipped.len();
        let skips = all - self.running.take().unwrap_or(all).min(all);
        self.results = true;
        self.count.passed += number(" passed").saturating_sub(skips);
        self.count.failed += number(" failed");
        for _ in 0..number(" ignored") {
            self.count.skipped.push(format!("a test of {}: marked #[ignore]", self.binary));
        }
    }

    /// `SUCCESS! -- 15 Passed | 0 Failed | 0 Pending | 77 Skipped`
    fn ginkgo_result(&mut self, line: &str) {
        self.results = true;
        self.count.passed += number_before(line, " Passed");
        self.count.failed += number_before(line, " Failed");
        // tests/sanity fails by itself if one is left out for a reason that it does not know.
        self.count.not_applicable += number_before(line, " Skipped") + number_before(line, " Pending");
    }

    /// A test binary that began and gave no result has died.
    fn died(&mut self) {
        if self.running.take().is_some() {
            self.count.fail(format!("{}: died without a result", self.binary));
        }
    }

    /// The count at the end. `whole` names the one test that a suite without results of its own is.
    pub fn finish(mut self, success: bool, whole: Option<&str>) -> Count {
        self.died();
        match whole {
            Some(name) if !self.results && self.count.skipped.is_empty() => {
                if success {
                    self.count.passed += 1;
                } else {
                    self.count.fail(name.to_owned());
                }
            }
            _ if !success && self.count.failed == 0 => {
                self.count.fail("the suite as a whole: see its output".to_owned())
            }
            _ => {}
        }
        self.count
    }
}

/// `running 12 tests`
fn is_start(line: &str) -> bool {
    let number = line
        .strip_prefix("running ")
        .and_then(|l| l.strip_suffix(" tests").or_else(|| l.strip_suffix(" test")));
    number.is_some_and(|n| n.parse::<usize>().is_ok())
}

/// The number that stands before `what`, or 0.
fn number_before(line: &str, what: &str) -> usize {
    let before = line.split_once(what).map(|(before, _)| before).unwrap_or_default();
    before.rsplit(|c: char| !c.is_ascii_digit()).next().and_then(|n| n.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, success: bool) -> Count {
        let mut parser = Parser::default();
        text.lines().for_each(|line| parser.line(line));
        parser.finish(success, None)
    }

    const GOOD: &str = "     Running unittests src/lib.rs (target/debug/deps/a-1)\n\nrunning 3 tests\ntest a ... ok\ntest b ... ok\ntest c ... ok\n\n\
                        successes:\n\n---- b stdout ----\nSKIPPED b: needs root\n\ntest result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n\n\
                        \x20  Doc-tests a\n\nrunning 1 test\ntest x ... ok\n\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured\n";

    #[test]
    fn results_of_several_binaries_are_summed_and_skips_taken_from_the_passed() {
        let count = parse(GOOD, true);
        assert_eq!((count.passed, count.failed), (3, 0));
        assert_eq!(count.skipped, ["b: needs root"]);
    }

    #[test]
    fn failures_are_named() {
        let text = "running 2 tests\ntest a ... FAILED\ntest b ... ok\n\ntest result: FAILED. 1 passed; 1 failed; 0 ignored;\nerror: test failed\n";
        let count = parse(text, false);
        assert_eq!((count.passed, count.failed), (1, 1));
        assert_eq!(count.failures, ["a"]);
    }

    #[test]
    fn the_last_words_of_a_failed_test_are_kept() {
        let text = "running 2 tests\ntest a ... FAILED\ntest b ... ok\n\nsuccesses:\n\n---- b stdout ----\n\
                    thread 'b' panicked at b.rs:1:1:\nas the test wants it\n\nfailures:\n\n---- a stdout ----\na long story\n\
                    thread 'a' (7) panicked at a.rs:2:3:\na: waited in vain\n\nCaused by: x\nstack backtrace:\n  0: main\n\
                    note: Some details are omitted\n\nfailures:\n    a\n\ntest result: FAILED. 1 passed; 1 failed; 0 ignored;\n\
                    thread 'c' panicked at c.rs\n";
        let count = parse(text, false);
        let wanted = ["thread 'a' (7) panicked at a.rs:2:3:", "a: waited in vain", "", "Caused by: x"];
        assert_eq!(count.why, wanted.map(|line| format!("a: {line}")));
    }

    #[test]
    fn a_binary_that_dies_counts_as_failed() {
        let text = format!(
            "     Running tests/x.rs (target/x)\n\nrunning 5 tests\ntest a ... ok\nerror: test failed (signal: 11)\n{GOOD}"
        );
        let count = parse(&text, false);
        assert_eq!((count.passed, count.failed), (3, 1));
        assert_eq!(count.failures, ["tests/x.rs (target/x): died without a result"]);
        let at_the_end = parse("running 5 tests\ntest a ... ok\n", false);
        assert_eq!(at_the_end.failed, 1);
        assert_eq!(
            parse("running 5 tests\ntest a ... ok\n", true).failed,
            1,
            "whatever the exit status says"
        );
    }

    #[test]
    fn a_suite_that_fails_without_a_result_counts_as_failed() {
        assert_eq!(parse("error: could not compile\n", false).failed, 1);
        assert_eq!(parse(GOOD, false).failed, 1, "an exit status of failure is never a pass");
        assert_eq!(parse("", true), Count::default());
    }

    #[test]
    fn ignored_tests_are_skipped_ones() {
        let count =
            parse("running 1 test\ntest result: ok. 0 passed; 0 failed; 1 ignored; 0 measured\n", true);
        assert_eq!((count.passed, count.skipped.len()), (0, 1));
    }

    #[test]
    fn specs_for_other_drivers_are_not_skips() {
        let text = "Ran 15 of 92 Specs in 1.234 seconds\nSUCCESS! -- 15 Passed | 0 Failed | 0 Pending | 77 Skipped\n";
        let count = parse(text, true);
        assert_eq!((count.passed, count.failed, count.skipped.len(), count.not_applicable), (15, 0, 0, 77));
        let text = "FAIL! -- 13 Passed | 2 Failed | 1 Pending | 76 Skipped\n";
        let count = parse(text, false);
        assert_eq!((count.passed, count.failed, count.skipped.len(), count.not_applicable), (13, 2, 0, 77));
    }

    #[test]
    fn a_script_that_skips_itself_takes_nothing_from_the_passed() {
        let count = parse("SKIPPED e2e: needs root\n", true);
        assert_eq!((count.passed, count.failed), (0, 0));
        assert_eq!(count.skipped, ["e2e: needs root"]);
    }

    #[test]
    fn a_skip_that_is_printed_twice_counts_once() {
        let text = "running 1 test\nSKIPPED b: needs root\ntest b ... ok\nSKIPPED b: needs root\ntest result: ok. 1 passed; 0 failed; 0 ignored;\n";
        let count = parse(text, true);
        assert_eq!((count.passed, count.skipped.len()), (0, 1));
    }

    #[test]
    fn two_binaries_may_skip_tests_of_the_same_name() {
        let text = "running 1 test\nSKIPPED b: needs root\ntest result: ok. 1 passed; 0 failed; 0 ignored;\n"
            .repeat(2);
        let count = parse(&text, true);
        assert_eq!((count.passed, count.skipped.len()), (0, 2));
    }

    #[test]
    fn a_suite_without_results_is_one_test() {
        let finish = |success| Parser::default().finish(success, Some("demo"));
        assert_eq!((finish(true).passed, finish(true).failed), (1, 0));
        assert_eq!((finish(false).passed, finish(false).failed), (0, 1));
        let mut parser = Parser::default();
        parser.line("SKIPPED demo: no user namespaces");
        let count = parser.finish(true, Some("demo"));
        assert_eq!((count.passed, count.failed, count.skipped.len()), (0, 0, 1));
    }
}
