# hearth's perl driver (docs/interpreters.md): the smallest whole driver. Given to perl by -e; one process is one context.
# Package variables stay from run to run; `my` variables end with their run.
package Hearth;
open(my $channel, "+<&", \*STDIN) or exit 1;
open(STDIN, "<", "/dev/null");
$| = 1;
my $running = 0;
$SIG{INT} = sub { die "KeyboardInterrupt\n" if $running };

sub take {
    my ($count, $data) = (shift, "");
    while (length($data) < $count) {
        my $got = sysread($channel, $data, $count - length($data), length($data));
        next if !defined $got && $!{EINTR};
        exit 0 unless $got;
    }
    return $data;
}

sub give {
    my ($kind, $data) = (shift, shift // "");
    utf8::encode($data) if utf8::is_utf8($data);
    my $frame = "$kind " . length($data) . "\n$data";
    while (length $frame) {
        my $put = syswrite($channel, $frame);
        substr($frame, 0, $put) = "" if $put;
    }
}

sub main::display {
    for my $value (@_) { give("part text/plain", "$value"); give("shown") }
}

give("ready");
while (1) {
    my ($header, $byte) = ("", "");
    $header .= $byte while ($byte = take(1)) ne "\n";
    my ($kind, $length) = split / /, $header;
    my $data = take($length);
    if ($kind eq "env") {
        for (split /\0/, $data) { $ENV{$1} = $2 if /^([^=]+)=(.*)$/s }
        srand;
    } elsif ($kind eq "run") {
        $running = 1;
        my $value = eval "package main; no strict;\n#line 1 \"run\"\n$data";
        my $error = $@;
        $running = 0;
        if ($error ne "") {
            my $name = ref($error) || ($error eq "KeyboardInterrupt\n" ? "KeyboardInterrupt" : "Error");
            give("error", join("\0", $name, substr("$error", 0, 3000), substr("$error", 0, 12000)));
        } elsif (defined $value) {
            give("part text/plain", "$value");
            give("value");
        }
        give("done");
    }
}
